"""Plots of calibration: how often predictions of a confidence are right, and the calibration error by task."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.evaluation.estimates import BINS
from taskmerge.evaluation.intervals import wilson
from taskmerge.reports.charting import (
    COLUMNS,
    PANEL,
    SHAPES,
    STEP,
    WIDTH,
    data,
    listed_values,
    percent,
    shown_names,
    spec_of,
)  # fmt: skip
from taskmerge.reports.checkpoint_groups import drawn_checkpoints, group_of, own_rows
from taskmerge.reports.figures import Figure

UNIT = alt.Scale(domain=[0, 1])
Row = Mapping[str, Any]


def calibration_figures(document: Mapping[str, Any]) -> list[Figure]:
    """Reliability curves and calibration errors; none where no classification was scored."""
    rows = [row for row in own_rows(document) if "ece" in row["extra"]]
    chosen = drawn_checkpoints(document, rows)
    rows = [row for row in rows if group_of(row) in chosen]
    if not rows:
        return []
    binned = [row for row in rows if row.get("reliability")]
    return [*([_reliability(binned, chosen)] if binned else []), _errors(rows, chosen)]


def pooled(rows: Sequence[Row]) -> list[dict[str, float]]:
    """The bins of several tasks as one: items, right ones, mean confidence, the share that is right and its Wilson
    interval."""
    sums: dict[int, list[float]] = {}
    for row in rows:
        for own in row["reliability"]:
            total = sums.setdefault(int(own["bin"]), [0, 0, 0.0])
            total[0] += int(own["n"])
            total[1] += int(own["right"])
            total[2] += own["confidence"] * own["n"]
    return [
        {"bin": place, "n": int(n), "confidence": confidence / n, "accuracy": right / n,
         **dict(zip(("low", "high"), wilson(int(right), int(n)), strict=True))}
        for place, (n, right, confidence) in sorted(sums.items())
    ]  # fmt: skip


def _reliability(rows: Sequence[Row], chosen: Sequence[str]) -> Figure:
    """A panel a checkpoint: confidence across, accuracy up, the diagonal between them."""
    names = shown_names(name for name in chosen if any(group_of(row) == name for row in rows))
    curves = {name: pooled([row for row in rows if group_of(row) == name]) for name in names}
    values = [{"checkpoint": names[name], **point} for name, curve in curves.items() for point in curve]
    base = alt.Chart()
    axis = alt.Axis(format=".0%", tickCount=3)
    x = alt.X("confidence:Q", title="confidence", scale=UNIT, axis=axis)
    diagonal = base.mark_rule(strokeDash=[4, 3], aria=False).encode(
        x=alt.datum(0), y=alt.datum(0), x2=alt.datum(1), y2=alt.datum(1)
    )
    line = base.mark_line(aria=False).encode(x=x, y=alt.Y("accuracy:Q", title="right", scale=UNIT, axis=axis))
    lines = base.mark_rule(aria=False, opacity=0.6).encode(x=x, y=alt.Y("low:Q", title="right"), y2="high:Q")
    points = base.mark_point(size=30).encode(
        x=x, y=alt.Y("accuracy:Q", title="right", scale=UNIT, axis=axis),
        tooltip=[
            alt.Tooltip("checkpoint:N", title="checkpoint"),
            alt.Tooltip("confidence:Q", title="mean confidence", format=".1%"),
            alt.Tooltip("accuracy:Q", title="right", format=".1%"), alt.Tooltip("low:Q", title="from", format=".1%"),
            alt.Tooltip("high:Q", title="to", format=".1%"), alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    chart = alt.layer(diagonal, line, lines, points, data=data(values)).properties(width=PANEL, height=PANEL)
    facet = alt.Facet("checkpoint:N", sort=list(names.values()), title=None, header=alt.Header(labelLimit=PANEL))
    told = [(names[name], _gap(curve)) for name, curve in curves.items()]
    tasks = len({row["task"] for row in rows})
    return Figure(
        name="reliability",
        title="Is confidence what it says?",
        caption=f"Share of predictions that are right by their confidence, in {BINS} equal bins over all items of "
        f"{tasks} tasks together; on the dashed line confidence is what it says, below it too high. Lines are 95% "
        "Wilson intervals; bins without items are left out.",
        alternative=f"Mean confidence and share right: {listed_values(told)}.",
        spec=spec_of(chart.facet(facet=facet, columns=min(COLUMNS, len(names)))),
    )


def _gap(curve: Sequence[Mapping[str, float]]) -> str:
    n = sum(point["n"] for point in curve)
    confidence, right = (sum(point[key] * point["n"] for point in curve) / n for key in ("confidence", "accuracy"))
    return f"{percent(confidence)} confident, {percent(right)} right, of {n:,.0f} items"


def _errors(rows: Sequence[Row], chosen: Sequence[str]) -> Figure:
    """A row a task, a mark for each checkpoint at its calibration error, with its interval."""
    names, tasks = shown_names(chosen), shown_names(dict.fromkeys(row["task"] for row in rows))
    values = [
        {"task": tasks[row["task"]], "checkpoint": names[group_of(row)], "ece": float(row["extra"]["ece"]),
         "low": float(row["extra"]["ece_low"]), "high": float(row["extra"]["ece_high"]), "n": row["n"]}
        for row in rows
    ]  # fmt: skip
    order = list(names.values())
    base = alt.Chart(data(values)).encode(
        y=alt.Y("task:N", sort=list(tasks.values()), title=None, axis=alt.Axis(labelLimit=130)),
        yOffset=alt.YOffset("checkpoint:N", sort=order),
        color=alt.Color("checkpoint:N", title=None, sort=order, scale=alt.Scale(domain=order)),
    )
    axis = alt.Axis(format=".0%")
    lines = base.mark_rule(aria=False).encode(x=alt.X("low:Q", title="calibration error", axis=axis), x2="high:Q")
    shapes = alt.Scale(domain=order, range=[SHAPES[place % len(SHAPES)] for place in range(len(order))])
    points = base.mark_point(size=40).encode(
        x=alt.X("ece:Q", title="calibration error", axis=axis),
        shape=alt.Shape("checkpoint:N", title=None, sort=order, scale=shapes),
        tooltip=[
            alt.Tooltip("task:N", title="task"), alt.Tooltip("checkpoint:N", title="checkpoint"),
            alt.Tooltip("ece:Q", title="calibration error", format=".1%"),
            alt.Tooltip("low:Q", title="from", format=".1%"), alt.Tooltip("high:Q", title="to", format=".1%"),
            alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    means = [(names[name], percent(_mean([row for row in rows if group_of(row) == name]))) for name in chosen]
    return Figure(
        name="calibration-error",
        title="Calibration error by task",
        caption=f"Expected calibration error of {BINS} bins (mean gap between confidence and share right); lines are "
        "95% bootstrap intervals. It is biased upwards where items are few, and so are its resamples: an interval may "
        "lie above its value.",
        alternative=f"Mean calibration error over the tasks: {listed_values(means)}.",
        spec=spec_of(alt.layer(lines, points).properties(
            width=WIDTH, height=max(60, (STEP // 2 + 3) * len(tasks) * max(1, len(order) - 1)))),
    )  # fmt: skip


def _mean(rows: Sequence[Row]) -> float:
    return sum(float(row["extra"]["ece"]) for row in rows) / max(1, len(rows))
