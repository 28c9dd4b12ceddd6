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
    values = _values(rows, relative=relative)
    own = [value for value in values if value["x"] == value["y"]]
    others = [value for value in values if value["x"] != value["y"]]
    best = sorted(others, key=lambda value: -value["value"])[:8]
    diagonal = listed_values((value["x"], told(value["value"])) for value in own)
    beyond = listed_values((f"{value['y']} on {value['x']}", told(value["value"])) for value in best)
    sizes = [value["n"] for value in values]
    how = (
        "as a share of what the task's own expert scores; ratios of two estimates, drawn without intervals."
        if relative
        else f"95% intervals and n are told on hover (n from {min(sizes):,} to {max(sizes):,})."
    )
    return Figure(
        name="cross-relative" if relative else "cross",
        title="Every expert on every task" + (", relative to the task's own" if relative else ""),
        caption="Score of each expert's encoder (down) with the head and data of each task (across)"
        f"{', ' if relative else '; '}{how}",
        alternative=f"On their own tasks: {diagonal}. Mean on other tasks: {told(_mean(others))}. "
        f"Most on another task: {beyond}.",
        spec=_spec(values, shares=shares, what="of the task's own expert" if relative else "score"),
    )


def _values(rows: Sequence[Mapping[str, Any]], *, relative: bool) -> list[dict[str, Any]]:
    """The cells."""
    names = shown_names(dict.fromkeys([row["checkpoint"].removeprefix(EXPERT) for row in rows]))
    tasks = shown_names(dict.fromkeys(row["task"] for row in rows))
    return [
        {
            "x": tasks[row["task"]], "y": names[row["checkpoint"].removeprefix(EXPERT)],
            "value": float(row["normalised"] if relative else row["score"]), "n": int(row["n"]),
            **({} if relative else {"low": float(row["low"]), "high": float(row["high"])}),
        }
        for row in rows
    ]  # fmt: skip


def _spec(values: Sequence[Mapping[str, Any]], *, shares: bool, what: str) -> Mapping[str, object]:
    tasks, names = (list(dict.fromkeys(value[axis] for value in values)) for axis in "xy")
    numbers = [value["value"] for value in values]
    shape = ".1%" if shares else ".3~g"
    bounds = [("low", "from"), ("high", "to")] if "low" in values[0] else []
    return heat_map(
        values, across=tasks, down=names, titles=("head and data of task", "encoder of expert"),
        value=alt.Color("value:Q", title=what, scale=colours(numbers),
                        legend=alt.Legend(format=".0%" if shares else ".3~g")),
        tooltip=[
            alt.Tooltip("y:N", title="encoder"), alt.Tooltip("x:N", title="task"),
            *(alt.Tooltip(f"{key}:Q", title=title, format=shape) for key, title in (("value", what), *bounds)),
            alt.Tooltip("n:Q", title="items", format=","),
        ],
        text=alt.Text("value:Q", format=".0%" if shares else ".2~g") if len(tasks) <= FULL else None,
        pale=f"datum.value > {(min(numbers) + max(numbers)) / 2:.6g}",
    )  # fmt: skip


def _mean(values: Sequence[Mapping[str, Any]]) -> float:
    return sum(float(value["value"]) for value in values) / max(1, len(values))
