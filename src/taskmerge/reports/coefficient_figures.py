"""Plots of learnt coefficients: by part of the model and task, and how many of them are as good as zero."""

from collections.abc import Iterable

import altair as alt
import numpy as np
from numpy.typing import NDArray

from taskmerge.methods.composed import Learned
from taskmerge.reports.charting import (
    STEP,
    WIDTH,
    colours,
    data,
    heat_map,
    listed_values,
    percent,
    shown_names,
    spec_of,
)
from taskmerge.reports.depth_groups import grouped, rows_for
from taskmerge.reports.figures import Figure

ZERO = 1e-5
"""A coefficient nearer to zero than this counts as zero (methods.md §8)."""


def coefficient_figures(learned: Learned) -> list[Figure]:
    """The heat map of coefficients, and where some are zero the share of those by task; none without coefficients."""
    if not learned.coefficients:
        return []
    return [_heat_map(learned), *_sparsity(learned)]


def values(learned: Learned, names: Iterable[str]) -> NDArray[np.float64]:
    """The coefficients of some tensors: [tensors, tasks]."""
    return np.stack([learned.coefficients[name].double().numpy() for name in names])


def _heat_map(learned: Learned) -> Figure:
    groups = grouped(learned.coefficients, rows_for(len(learned.tasks)))
    names = shown_names(learned.tasks)
    rows = []
    for group in groups:
        own = values(learned, group.names)
        for place, name in enumerate(names.values()):
            column = own[:, place]
            rows.append({
                "x": name, "y": group.label, "mean": float(column.mean()), "low": float(column.min()),
                "high": float(column.max()), "zero": float((abs(column) < ZERO).mean()), "n": len(column),
            })  # fmt: skip
    spec = heat_map(
        rows, across=list(names.values()), down=[group.label for group in groups], titles=("task", ""),
        value=alt.Color("mean:Q", title="λ", scale=colours([float(str(row["mean"])) for row in rows])),
        tooltip=[
            alt.Tooltip("y:N", title="part"), alt.Tooltip("x:N", title="task"),
            alt.Tooltip("mean:Q", title="mean λ"), alt.Tooltip("low:Q", title="smallest"),
            alt.Tooltip("high:Q", title="largest"), alt.Tooltip("zero:Q", title="zero", format=".1%"),
            alt.Tooltip("n:Q", title="tensors"),
        ],
    )  # fmt: skip
    whole = values(learned, learned.coefficients)
    by_task = [(name, f"{own:.3g}") for name, own in zip(names.values(), whole.mean(0), strict=True)]
    by_group = [(group.label, f"{values(learned, group.names).mean():.3g}") for group in groups]
    return Figure(
        name="coefficients",
        title="Learnt coefficients, by layer and task",
        caption=f"Mean coefficient λ (no unit) of the tensors in each part of the model; {len(whole)} tensors, "
        f"{whole.size:,} coefficients, {percent(float((abs(whole) < ZERO).mean()))} of them nearer to zero than "
        f"{ZERO:g}. Their range in each part is shown on hover.",
        alternative=f"Coefficients from {whole.min():.3g} to {whole.max():.3g}, mean {whole.mean():.3g}. "
        f"Means by task: {listed_values(by_task)}. By part: {listed_values(by_group, 40)}.",
        spec=spec,
    )


def _sparsity(learned: Learned) -> list[Figure]:
    """Bars: the share of each task's coefficients that count as zero; nothing where none does."""
    names = shown_names(learned.tasks)
    zero = np.abs(values(learned, learned.coefficients)) < ZERO
    if not zero.any():
        return []
    shares = zero.mean(0)
    rows = [
        {"task": name, "share": float(share), "count": int(count), "n": len(zero)}
        for name, share, count in zip(names.values(), shares, zero.sum(0), strict=True)
    ]
    chart = alt.Chart(data(rows)).mark_bar().encode(
        y=alt.Y("task:N", sort=list(names.values()), title="task", axis=alt.Axis(labelLimit=160)),
        x=alt.X("share:Q", title=f"coefficients with |λ| < {ZERO:g}", axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, max(0.05, float(shares.max()))])),
        tooltip=[
            alt.Tooltip("task:N", title="task"), alt.Tooltip("share:Q", title="zero", format=".1%"),
            alt.Tooltip("count:Q", title="coefficients that are zero"), alt.Tooltip("n:Q", title="coefficients"),
        ],
    )  # fmt: skip
    by_task = zip(names.values(), map(percent, shares), strict=True)
    figure = Figure(
        name="coefficients-sparsity",
        title="How many coefficients are zero",
        caption=f"Share of each task's {len(zero)} coefficients that are nearer to zero than {ZERO:g}; counted, so "
        "without intervals.",
        alternative=f"{int(zero.sum())} of {zero.size:,} coefficients ({percent(float(zero.mean()))}) are nearer to "
        f"zero than {ZERO:g}. By task: {listed_values(by_task)}.",
        spec=spec_of(chart.properties(width=WIDTH, height=max(60, STEP * len(rows)))),
    )
    return [figure]
