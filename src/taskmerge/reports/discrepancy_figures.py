"""Plots of what checkpoints lose and gain against the experts, item by item."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from taskmerge.reports.charting import COLUMNS, STEP, data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.figures import Figure

MOST = 4
"""Checkpoints that are drawn; the tables have all."""
LOST, GAINED = "lost: expert right, it wrong", "gained: expert wrong, it right"
SIDE = alt.Axis(labelExpr="format(abs(datum.value), '.0%')", tickCount=4)


def discrepancy_figures(document: Mapping[str, Any]) -> list[Figure]:
    """Bars to the left for what is lost, to the right for what is gained; none where nothing was compared."""
    entries = [entry for entry in document["comparisons"] if entry["corruption"] is None]
    if not entries:
        return []
    chosen = _chosen(entries)
    entries = [entry for entry in entries if entry["checkpoint"] in chosen]
    checkpoints, tasks = shown_names(chosen), shown_names(dict.fromkeys(entry["task"] for entry in entries))
    rows = [row for entry in entries for row in _rows(entry, checkpoints, tasks)]
    total = len({entry["checkpoint"] for entry in document["comparisons"]})
    more = f" The {MOST} that lose least of {total} checkpoints are drawn." if total > len(chosen) else ""
    sizes = sorted({entry["n"] for entry in entries})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    told = [
        (f"{checkpoints[entry['checkpoint']]} on {tasks[entry['task']]}",
         f"loses {percent(entry['lost']['share'])}, gains {percent(entry['gained']['share'])}")
        for entry in entries
    ]  # fmt: skip
    return [
        Figure(
            name="discrepancy",
            title="Lost and gained against the experts",
            caption=f"Share of each task's items ({n}) that the expert has right and it wrong (to the left) "
            f"and the other way round (to the right); lines are 95% Wilson intervals.{more}",
            alternative=f"{listed_values(told, 32)}.",
            spec=_spec(rows, list(checkpoints.values()), list(tasks.values())),
        )
    ]


def _chosen(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The checkpoints that lose least on balance, in the order of the report."""
    nets: dict[str, list[float]] = {}
    for entry in entries:
        nets.setdefault(entry["checkpoint"], []).append(entry["net"]["share"])
    best = sorted(nets, key=lambda name: sum(nets[name]) / len(nets[name]))[:MOST]
    return [name for name in nets if name in best]


def _rows(
    entry: Mapping[str, Any], checkpoints: Mapping[str, str], tasks: Mapping[str, str]
) -> list[dict[str, object]]:  # fmt: skip
    """Two bars: the one to the left has its numbers below zero."""
    rows: list[dict[str, object]] = []
    for kind, key, sign in ((LOST, "lost", -1), (GAINED, "gained", 1)):
        own = entry[key]
        rows.append({
            "checkpoint": checkpoints[entry["checkpoint"]], "task": tasks[entry["task"]], "kind": kind,
            "share": float(own["share"]), "low": float(own["low"]), "high": float(own["high"]), "n": entry["n"],
            "at": sign * float(own["share"]), "from": sign * float(own["low"]), "to": sign * float(own["high"]),
        })  # fmt: skip
    return rows


def _spec(rows: Sequence[Mapping[str, object]], checkpoints: list[str], tasks: list[str]) -> Mapping[str, object]:
    base = alt.Chart().encode(y=alt.Y("task:N", sort=tasks, title=None, axis=alt.Axis(labelLimit=130)))
    kinds = alt.Color("kind:N", title=None, sort=[LOST, GAINED], legend=alt.Legend(orient="bottom", labelLimit=240))
    bars = base.mark_bar(opacity=0.6).encode(
        kinds, x=alt.X("at:Q", title="share of items", axis=SIDE),
        tooltip=[
            alt.Tooltip("checkpoint:N", title="checkpoint"), alt.Tooltip("task:N", title="task"),
            alt.Tooltip("kind:N", title="what"), alt.Tooltip("share:Q", title="share", format=".1%"),
            alt.Tooltip("low:Q", title="from", format=".1%"), alt.Tooltip("high:Q", title="to", format=".1%"),
            alt.Tooltip("n:Q", title="items", format=","),
        ],
    )  # fmt: skip
    lines = base.mark_rule(aria=False).encode(x=alt.X("from:Q", title="share of items", axis=SIDE), x2="to:Q")
    chart = alt.layer(bars, lines, data=data(rows)).properties(width=240, height=STEP * len(tasks))
    facet = alt.Facet("checkpoint:N", sort=checkpoints, title=None)
    return spec_of(chart.facet(facet=facet, columns=min(2, COLUMNS, len(checkpoints))))
