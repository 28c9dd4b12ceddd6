"""Plots of a spectrum: energy over rank, what lies between tasks as heat maps, and both by depth."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from taskmerge.reports.charting import (
    WIDTH,
    colours,
    data,
    heat_map,
    listed_values,
    percent,
    shown_names,
    spec_of,
)
from taskmerge.reports.figures import Figure
from taskmerge.reports.spectrum_tables import ABOUT, MEASURES, SQUARE, paired, times_chance, whole
from taskmerge.reports.tables import written

Document = Mapping[str, Any]
MOST = 20
"""Tasks up to which a heat map of pairs has room for them."""
MAPS = ("cosine", "overlap_left", "overlap_right", "interference", "sign_conflict")


def spectrum_figures(report: Document) -> list[Figure]:
    """The plots of a report.json of `taskmerge spectrum`."""
    found: list[Figure | None] = []
    for space in report["spaces"]:
        found.append(_energy(report, space))
        found += [_between(report, space, key) for key in MAPS]
        found += [_depth(report, space)]
    return [figure for figure in found if figure is not None]


# --- spectra ---------------------------------------------------------------------------------------------------


def _share_of(rank: str, full: float) -> float:
    return min(1.0, int(rank) / full) if rank.isdigit() else float(rank)


def _energy(report: Document, space: str) -> Figure | None:
    """A line a task: the share of the energy in the leading components; None for a single ratio."""
    ratios = report["settings"]["ratios"]
    group, names = whole(report, space), shown_names(report["tasks"])
    if len(ratios) < 2 or any(rank.isdigit() for rank in ratios):
        return None
    rows = [
        {"task": name, "rank": float(ratio), "energy": value}
        for name, values in zip(names.values(), group["energy"], strict=True)
        for ratio, value in zip(ratios, values, strict=True)
        if value is not None
    ]
    if not rows:
        return None
    chart = (
        alt.Chart(data(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("rank:Q", title="components, share of the full rank", scale=alt.Scale(type="log"),
                    axis=alt.Axis(format="%", values=[float(ratio) for ratio in ratios])),
            y=alt.Y("energy:Q", title="energy kept", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
            color=alt.Color("task:N", title="task", sort=list(names.values())),
            tooltip=[
                alt.Tooltip("task:N", title="task"), alt.Tooltip("rank:Q", title="rank", format=".0%"),
                alt.Tooltip("energy:Q", title="energy kept", format=".1%"),
            ],
        )
        .properties(width=WIDTH, height=240)
    )  # fmt: skip
    means = [(ratio, percent(fmean(row["energy"] for row in rows if row["rank"] == float(ratio)))) for ratio in ratios]
    return Figure(
        name=f"energy-{space}",
        title="How much the leading components hold",
        caption=f"Share of the squared singular values of {ABOUT[space]} in the leading components, over their share "
        f"of the full rank (a logarithmic axis); means over {group['matrices']} matrices, a line a task (n = "
        f"{len(names)}); computed from the weights, so without intervals.",
        alternative=f"Mean over tasks of the energy kept at each share of the rank: {listed_values(means)}.",
        spec=spec_of(chart),
    )


# --- between tasks ---------------------------------------------------------------------------------------------


def _between(report: Document, space: str, key: str) -> Figure | None:
    """A heat map of every two tasks; overlaps as multiples of chance, cosines as they are."""
    measure = whole(report, space)[key]
    tasks = list(shown_names(report["tasks"]).values())
    if measure is None or len(tasks) < 3 or len(tasks) > MOST:
        return None
    plain = key == "cosine"
    rows = [
        {"y": tasks[first], "x": tasks[second], "shown": value if plain else value / level, "value": value,
         "chance": level}
        for first, second, value, level in _cells(report, measure, key)
        if value is not None and (plain or level > 0)
    ]  # fmt: skip
    if not rows:
        return None
    title = MEASURES[key]
    scale = colours([row["shown"] for row in rows]) if plain else _multiples([row["shown"] for row in rows])
    spec = heat_map(
        rows, across=tasks, down=tasks, titles=("task", "task"),
        value=alt.Color("shown:Q", title=title if plain else "times chance", scale=scale),
        tooltip=[
            alt.Tooltip("y:N", title="task"), alt.Tooltip("x:N", title="with"),
            alt.Tooltip("value:Q", title=title, format=".3f"), alt.Tooltip("chance:Q", title="by chance", format=".3f"),
        ],
    )  # fmt: skip
    ordered = " One task's leading components (down) in the spaces of another (across)." if key in SQUARE else ""
    unit = "as it is" if plain else "as a multiple of what chance gives"
    told = sorted(((f"{row['y']} with {row['x']}", row["shown"]) for row in rows), key=lambda pair: -pair[1])
    both = [pair for place, pair in enumerate(told) if key in SQUARE or place % 2 == 0]
    return Figure(
        name=f"{key.replace('_', '-')}-{space}",
        title=f"{title[0].upper()}{title[1:]} of every two tasks",
        caption=f"{title[0].upper()}{title[1:]} of {ABOUT[space]} {unit}.{ordered} Over "
        f"{whole(report, space)['matrices']} matrices; computed from the weights, so without intervals.",
        alternative=f"Largest first: {listed_values([(name, f'{value:.3g}') for name, value in both], 12)}. Mean of "
        f"all pairs {fmean(value for _, value in both):.3g}.",
        spec=spec,
    )


def _multiples(values: Sequence[float]) -> alt.Scale:
    """Colours for multiples of chance: 1 is in the middle, a half as far as twice."""
    most = max(2.0, *values, *(1 / value for value in values if value > 0 and value > 1e-3))
    return alt.Scale(type="log", domain=[1 / most, most], domainMid=1, clamp=True)


def _cells(report: Document, measure: Document, key: str) -> list[tuple[int, int, Any, Any]]:
    """(row, column, value, chance) of every two tasks, both ways round."""
    tasks = range(len(report["tasks"]))
    if key in SQUARE:
        value, level = measure["value"], measure["chance"]
        return [(row, column, value[row][column], level[row][column]) for row in tasks for column in tasks
                if row != column]  # fmt: skip
    found = []
    for (first, second), value, level in zip(report["pairs"], measure["value"], measure["chance"], strict=True):
        found += [(first, second, value, level), (second, first, value, level)]
    return found


# --- by depth --------------------------------------------------------------------------------------------------


def _depth(report: Document, space: str) -> Figure | None:
    """Overlaps as multiples of chance over blocks; None for a model of fewer than two blocks."""
    found = [one for one in report["groups"] if one["space"] == space and one["by"] == "depth"]
    keys = [key for key in MEASURES if key not in ("cosine", "sign_conflict")]
    rows = [
        {"tower": one["tower"], "block": int(one["group"]), "measure": MEASURES[key], "times": ratio}
        for one in found for key in keys
        if one[key] is not None and (ratio := times_chance(paired(one[key], key))) is not None and ratio > 0
    ]  # fmt: skip
    if len({(row["tower"], row["block"]) for row in rows}) < 2:
        return None
    towers = list(dict.fromkeys(str(row["tower"]) for row in rows))
    line = (
        alt.Chart(data(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("block:Q", title="block", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("times:Q", title="times chance", scale=alt.Scale(type="log", nice=False, domain=_range(rows))),
            color=alt.Color("measure:N", title=None, sort=[MEASURES[key] for key in keys]),
            tooltip=[
                alt.Tooltip("tower:N", title="tower"), alt.Tooltip("block:Q", title="block"),
                alt.Tooltip("measure:N", title="measure"), alt.Tooltip("times:Q", title="times chance", format=".2f"),
            ],
        )
        .properties(width=WIDTH if len(towers) == 1 else WIDTH // 2, height=220)
    )  # fmt: skip
    chart = line if len(towers) == 1 else line.facet(facet=alt.Facet("tower:N", title=None, sort=towers), columns=2)
    told = [(f"block {row['block']} {row['measure']}", written(row["times"], 2)) for row in rows]
    return Figure(
        name=f"depth-{space}",
        title="Overlap by depth",
        caption=f"What lies between tasks in the matrices of each block, as a multiple of what chance gives (a "
        f"logarithmic axis; 1 is chance); means over {len(report['pairs'])} pairs of {ABOUT[space]}; computed from the "
        "weights, so without intervals.",
        alternative=f"Times chance by block: {listed_values(told, 40)}.",
        spec=spec_of(chart),
    )


def _range(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    values = [float(row["times"]) for row in rows]
    return [math.floor(10 * min(0.9, *values)) / 10 or min(values), math.ceil(10 * max(1.1, *values)) / 10]
