"""Plots of the cross-task matrix: every expert's encoder with every task's head, absolute and relative."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.selection import EXPERT
from taskmerge.reports.charting import colours, heat_map, listed_values, percent, shown_names
from taskmerge.reports.figures import Figure

FULL = 12
"""Tasks of which every cell has its number in it; of more they are told on hover."""


def cross_figures(document: Mapping[str, Any]) -> list[Figure]:
    """The matrix as it is and relative to its diagonal; none where no expert was scored on another's task."""
    rows = [
        row for row in document["rows"] if row["corruption"] is None and row["checkpoint"].startswith(EXPERT)
    ]  # fmt: skip
    if all(row["checkpoint"] == EXPERT + row["task"] for row in rows):
        return []
    figures = [_figure(rows, relative=False)]
    if any(row["normalised"] is not None for row in rows):
        figures.append(_figure([row for row in rows if row["normalised"] is not None], relative=True))
    return figures


def _figure(rows: Sequence[Mapping[str, Any]], *, relative: bool) -> Figure:
    """One heat map: encoders down, heads and data across."""
    shares = relative or all(METRICS[row["metric"]].percent for row in rows)
    told: Callable[[float], str] = percent if shares else lambda value: f"{value:.3g}"
    names = shown_names(dict.fromkeys([row["checkpoint"].removeprefix(EXPERT) for row in rows]))
    tasks = shown_names(dict.fromkeys(row["task"] for row in rows))
    values = [
        {
            "x": tasks[row["task"]], "y": names[row["checkpoint"].removeprefix(EXPERT)],
            "value": float(row["normalised"] if relative else row["score"]), "n": row["n"],
            **({} if relative else {"low": float(row["low"]), "high": float(row["high"])}),
        }
        for row in rows
    ]  # fmt: skip
    numbers = [float(value["value"]) for value in values]
    scale = colours(numbers)
    middle = (min(numbers) + max(numbers)) / 2
    shape, what = ".1%" if shares else ".3~g", "of the task's own expert" if relative else "score"
    own = [value for value in values if value["x"] == value["y"]]
    others = [value for value in values if value["x"] != value["y"]]
    spec = heat_map(
        values, across=list(tasks.values()), down=list(names.values()),
        titles=("head and data of task", "encoder of expert"),
        value=alt.Color("value:Q", title=what, scale=scale, legend=alt.Legend(format=".0%" if shares else ".3~g")),
        tooltip=[
            alt.Tooltip("y:N", title="encoder"), alt.Tooltip("x:N", title="task"),
            alt.Tooltip("value:Q", title=what, format=shape),
            *([] if relative else [alt.Tooltip("low:Q", title="from", format=shape),
                                   alt.Tooltip("high:Q", title="to", format=shape)]),
            alt.Tooltip("n:Q", title="items", format=","),
        ],
        text=alt.Text("value:Q", format=".0%" if shares else ".2~g") if len(tasks) <= FULL else None,
        pale=f"datum.value > {middle:.6g}",
    )  # fmt: skip
    best = sorted(others, key=lambda value: -float(value["value"]))[:8]
    diagonal = [(str(value["x"]), told(float(value["value"]))) for value in own]
    beyond = [(f"{value['y']} on {value['x']}", told(float(value["value"]))) for value in best]
    return Figure(
        name="cross-relative" if relative else "cross",
        title="Every expert on every task" + (", relative to the task's own" if relative else ""),
        caption=("Score of each expert's encoder (down) with the head and data of each task (across), as a share of "
                 "what the task's own expert scores; ratios of two estimates, drawn without intervals."
                 if relative else
                 "Score of each expert's encoder (down) with the head and data of each task (across); 95% intervals "
                 f"and n are told on hover (n from {min(row['n'] for row in rows):,} to "
                 f"{max(row['n'] for row in rows):,})."),
        alternative=f"On their own tasks: {listed_values(diagonal)}. "
        f"Mean on other tasks: {told(_mean(others))}. Most on another task: "
        f"{listed_values(beyond)}.",
        spec=spec,
    )  # fmt: skip


def _mean(values: Sequence[Mapping[str, Any]]) -> float:
    return sum(float(value["value"]) for value in values) / max(1, len(values))
