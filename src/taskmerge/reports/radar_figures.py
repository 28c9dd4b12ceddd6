"""Radar charts over tasks: one polygon a checkpoint, an axis a task."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.selection import EXPERTS
from taskmerge.reports.charting import data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.checkpoint_groups import drawn_checkpoints, group_of, own_rows
from taskmerge.reports.figures import Figure

FEWEST, MOST_TASKS = 3, 24
"""Axes without which there is no polygon, and above which names would lie on each other."""
SERIES = 5
RINGS = (0.25, 0.5, 0.75, 1.0)
SIZE, EDGE = 340, 1.4
"""Pixels, and how far the plot reaches, in radii."""


def radar_figures(document: Mapping[str, Any]) -> list[Figure]:
    """The scores over tasks, or where some are no shares those relative to the experts'; none for fewer tasks than
    three."""
    rows = own_rows(document)
    relative = not all(METRICS[row["metric"]].percent and not row["lower_is_better"] for row in rows)
    rows = [row for row in rows if not relative or row["normalised"] is not None]
    chosen = drawn_checkpoints(document, rows, SERIES)
    rows = [row for row in rows if group_of(row) in chosen and not (relative and group_of(row) == EXPERTS)]
    tasks = shown_names(dict.fromkeys(row["task"] for row in rows))
    if not FEWEST <= len(tasks) <= MOST_TASKS:
        return []
    names = shown_names(name for name in chosen if any(group_of(row) == name for row in rows))
    values = [_value(row, names, tasks, relative=relative) for row in rows]
    what = "score relative to the task's own expert" if relative else "score"
    told = [
        (name, ", ".join(f"{value['task']} {percent(float(str(value['value'])))}" for value in values
                         if value["checkpoint"] == name))
        for name in names.values()
    ]  # fmt: skip
    beyond = any(float(str(value["value"])) > 1 for value in values)
    return [
        Figure(
            name="radar",
            title="Scores over tasks",
            caption=f"Each axis is a task, from 0% in the middle to 100% at the outermost ring: {what}"
            f"{', at most 100% drawn' if beyond else ''}; below 0% is drawn as 0%. n"
            f"{'' if relative else ' and 95% intervals'} on hover. A polygon's area means nothing: it changes with "
            "the order of tasks.",
            alternative=f"{listed_values(told)}.",
            spec=_spec(values, list(names.values()), list(tasks.values())),
        )
    ]


def _value(
    row: Mapping[str, Any], names: Mapping[str, str], tasks: Mapping[str, str], *, relative: bool
) -> dict[str, object]:  # fmt: skip
    """A corner of a polygon."""
    value = float(row["normalised"] if relative else row["score"])
    place = list(tasks).index(row["task"])
    x, y = _at(place, len(tasks), min(max(value, 0.0), 1.0))
    bounds = {} if relative else {"low": float(row["low"]), "high": float(row["high"])}
    return {
        "checkpoint": names[group_of(row)], "task": tasks[row["task"]], "value": value, **bounds, "n": row["n"],
        "order": place, "x": x, "y": y,
    }  # fmt: skip


def _at(place: int, tasks: int, radius: float) -> tuple[float, float]:
    """Where a value is drawn: the first task is up, the others follow clockwise."""
    angle = 2 * math.pi * place / tasks
    return radius * math.sin(angle), radius * math.cos(angle)


def _spec(values: Sequence[Mapping[str, object]], names: list[str], tasks: list[str]) -> Mapping[str, object]:
    scale = alt.Scale(domain=[-EDGE, EDGE], nice=False)
    x, y = (alt.X("x:Q", axis=None, scale=scale), alt.Y("y:Q", axis=None, scale=scale))
    first = {str(value["checkpoint"]): value for value in reversed(values)}
    closed = [*values, *({**value, "order": len(tasks)} for value in first.values())]
    colour = alt.Color("checkpoint:N", title=None, sort=names, scale=alt.Scale(domain=names),
                       legend=alt.Legend(orient="bottom", columns=3))  # fmt: skip
    lines = alt.Chart(data(closed)).mark_line(aria=False).encode(
        x, y, colour, order="order:Q", strokeDash=alt.StrokeDash("checkpoint:N", sort=names, legend=None)
    )  # fmt: skip
    bounds = [alt.Tooltip(f"{key}:Q", title=title, format=".1%") for key, title in (("low", "from"), ("high", "to"))
              if key in values[0]]  # fmt: skip
    points = alt.Chart(data(values)).mark_point(size=25).encode(
        x, y, colour,
        tooltip=[
            alt.Tooltip("checkpoint:N", title="checkpoint"), alt.Tooltip("task:N", title="task"),
            alt.Tooltip("value:Q", title="score", format=".1%"), *bounds, alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    layers = [*_grid(x, y, len(tasks)), lines, points, *_names(x, y, tasks)]
    return spec_of(alt.layer(*layers).properties(width=SIZE, height=SIZE))


def _grid(x: alt.X, y: alt.Y, tasks: int) -> list[alt.Chart]:
    """Rings and spokes, and what the rings stand for."""
    lines = [
        {"x": at[0], "y": at[1], "x2": to[0], "y2": to[1]}
        for ring in RINGS for place in range(tasks) for at in [_at(place, tasks, ring)]
        for to in [_at(place + 1, tasks, ring)]
    ]  # fmt: skip
    lines += [{"x": 0.0, "y": 0.0, "x2": at[0], "y2": at[1]} for place in range(tasks) for at in [_at(place, tasks, 1)]]
    labels = [{"x": 0.02, "y": ring, "text": f"{ring:.0%}"} for ring in RINGS]
    return [
        alt.Chart(data(lines)).mark_rule(strokeWidth=0.7, opacity=0.35, aria=False).encode(x, y, x2="x2:Q", y2="y2:Q"),
        alt.Chart(data(labels)).mark_text(align="left", baseline="top", fontSize=9, opacity=0.8, aria=False).encode(
            x, y, text="text:N"),
    ]  # fmt: skip


def _names(x: alt.X, y: alt.Y, tasks: list[str]) -> list[alt.Chart]:
    """The tasks' names around it, on the side where there is room for them."""
    sides: dict[Literal["center", "left", "right"], list[dict[str, object]]] = {}
    for place, name in enumerate(tasks):
        at = _at(place, len(tasks), 1.1)
        side: Literal["center", "left", "right"] = "center" if abs(at[0]) < 0.15 else "left" if at[0] > 0 else "right"
        sides.setdefault(side, []).append({"x": at[0], "y": at[1], "text": name})
    return [
        alt.Chart(data(rows)).mark_text(align=side, limit=90, fontSize=11, aria=False).encode(x, y, text="text:N")
        for side, rows in sorted(sides.items())
    ]
