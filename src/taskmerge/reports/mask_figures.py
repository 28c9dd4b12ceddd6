"""Plots of learnt masks: what share of the components, or entries, each part of the model keeps of each task."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from taskmerge.methods.composed import Learned
from taskmerge.reports.charting import WIDTH, colours, data, heat_map, listed_values, percent, shown_names, spec_of
from taskmerge.reports.depth_groups import ROLES, grouped, places, rows_for
from taskmerge.reports.figures import Figure

BINS = 20
"""Of a component's index, relative to how many its matrix has."""
ALL_TASKS = "all tasks"
UNIT = alt.Scale(domain=[0, 1])
SHARE = alt.Axis(format="%")


@dataclass(frozen=True, slots=True)
class Kept:
    """Bits of masks by task: of some tensors together."""

    on: tuple[int, ...]
    of: tuple[int, ...]

    @property
    def shares(self) -> list[float]:
        """The kept share of every task."""
        return [on / max(1, of) for on, of in zip(self.on, self.of, strict=True)]

    @property
    def share(self) -> float:
        """The kept share of all together."""
        return sum(self.on) / max(1, sum(self.of))


def mask_figures(learned: Learned) -> list[Figure]:
    """Kept shares by layer and task, by depth, and by the index of components; none without masks."""
    if not learned.masks:
        return []
    figures = [_layers(learned), _depth(learned)]
    if _of_components(learned):
        figures.append(_indices(learned))
    return [figure for figure in figures if figure is not None]


def kept(learned: Learned, names: Iterable[str]) -> Kept:
    """The bits of some tensors' masks, by task; masks of entries are of all tasks together."""
    tasks = _columns(learned)
    on, of = np.zeros(len(tasks), dtype=np.int64), np.zeros(len(tasks), dtype=np.int64)
    for name in names:
        mask = learned.masks[name]
        on += mask.sum(dim=(0, 2)).numpy()
        of += mask.shape[0] * mask.shape[2]
    return Kept(tuple(map(int, on)), tuple(map(int, of)))


def _of_components(learned: Learned) -> bool:
    """Whether masks are of components, one a task, and not of entries."""
    return all(mask.shape[1] == len(learned.tasks) for mask in learned.masks.values())


def _columns(learned: Learned) -> Sequence[str]:
    return learned.tasks if _of_components(learned) else (ALL_TASKS,)


def _what(learned: Learned) -> str:
    return "singular components" if _of_components(learned) else "entries"


# --- by layer and task -----------------------------------------------------------------------------------------


def _layers(learned: Learned) -> Figure:
    """A heat map: parts of the model down, tasks across."""
    groups = grouped(learned.masks, rows_for(len(_columns(learned))))
    names = shown_names(_columns(learned))
    rows: list[dict[str, Any]] = [
        {"x": name, "y": group.label, "share": share, "on": on, "of": of}
        for group in groups
        for counts in [kept(learned, group.names)]
        for name, share, on, of in zip(names.values(), counts.shares, counts.on, counts.of, strict=True)
    ]
    spec = heat_map(
        rows, across=list(names.values()), down=[group.label for group in groups], titles=("task", ""),
        value=alt.Color("share:Q", title="kept", scale=colours([row["share"] for row in rows], within=(0, 1)),
                        legend=alt.Legend(format=".0%")),
        tooltip=[
            alt.Tooltip("y:N", title="part"), alt.Tooltip("x:N", title="task"),
            alt.Tooltip("share:Q", title="kept", format=".1%"),
            alt.Tooltip("on:Q", title="bits on"), alt.Tooltip("of:Q", title="bits"),
        ],
    )  # fmt: skip
    whole = kept(learned, learned.masks)
    by_group = [(group.label, percent(kept(learned, group.names).share)) for group in groups]
    by_task = zip(names.values(), map(percent, whole.shares), strict=True)
    what = _what(learned)
    return Figure(
        name="masks",
        title="What the masks keep, by layer and task",
        caption=f"Share of {what} that the learnt masks keep, in percent of {sum(whole.of):,} bits in "
        f"{len(learned.masks)} matrices; counted, so without intervals.",
        alternative=f"The masks keep {percent(whole.share)} of all {what}. By task: {listed_values(by_task)}. "
        f"By part: {listed_values(by_group, 40)}.",
        spec=spec,
    )


# --- by depth --------------------------------------------------------------------------------------------------


def _depth(learned: Learned) -> Figure | None:
    """Lines over blocks, one a role, in a band of the tasks' range; None for a model of fewer than two blocks."""
    rows = list(_by_depth(learned))
    depths = sorted({int(str(row["depth"])) for row in rows})
    if len(depths) < 2:
        return None
    base = alt.Chart().encode(x=alt.X("depth:Q", title="block", axis=alt.Axis(tickMinStep=1, format="d")))
    legend = alt.Legend(symbolOpacity=1, orient="bottom")
    colour = alt.Color("role:N", title=None, sort=list(ROLES.values()), legend=legend)
    band = base.mark_area(opacity=0.2, aria=False).encode(
        y=alt.Y("low:Q", scale=UNIT, axis=SHARE), y2="high:Q", color=colour
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y("share:Q", title="kept", scale=UNIT, axis=SHARE), color=colour,
        tooltip=[
            alt.Tooltip("tower:N", title="tower"), alt.Tooltip("depth:Q", title="block"),
            alt.Tooltip("role:N", title="role"), alt.Tooltip("share:Q", title="kept", format=".1%"),
            alt.Tooltip("low:Q", title="smallest of the tasks", format=".1%"),
            alt.Tooltip("high:Q", title="largest of the tasks", format=".1%"),
        ],
    )  # fmt: skip
    towers = list(dict.fromkeys(str(row["tower"]) for row in rows))
    chart = alt.layer(band, line, data=data(rows)).properties(width=WIDTH, height=220)
    if len(towers) > 1:
        chart = alt.layer(band, line, data=data(rows)).properties(width=WIDTH // 2, height=180)
        chart = chart.facet(facet=alt.Facet("tower:N", title=None, sort=towers), columns=2)
    told = [(f"block {row['depth']} {row['role']}", percent(float(str(row["share"])))) for row in rows]
    what = _what(learned)
    bands = "; bands reach from the task that keeps least to the one that keeps most" if _of_components(learned) else ""
    return Figure(
        name="masks-depth",
        title="Kept share by depth",
        caption=f"Share of {what} that is kept in each block, by role, over all {len(learned.tasks)} tasks{bands}.",
        alternative=f"Kept share by block and role: {listed_values(told, 40)}.",
        spec=spec_of(chart),
    )


def _by_depth(learned: Learned) -> Iterator[dict[str, object]]:
    """A row for every block and role, with the range over tasks."""
    members: dict[tuple[str, int, str], list[str]] = {}
    for name, place in places(sorted(learned.masks)).items():
        if place.depth is not None:
            members.setdefault((place.tower or "", place.depth, place.role), []).append(name)
    for (tower, depth, role), names in sorted(members.items()):
        counts = kept(learned, names)
        yield {
            "tower": tower, "depth": depth, "role": role, "share": counts.share,
            "low": min(counts.shares), "high": max(counts.shares),
        }  # fmt: skip


# --- by index --------------------------------------------------------------------------------------------------


def _indices(learned: Learned) -> Figure:
    """Lines over the relative index of components, strongest first, in a band of the tasks' range."""
    on, of = _index_counts(learned)
    shares = on / np.maximum(of, 1)
    rows = [
        {
            "index": (place + 0.5) / BINS, "share": float(on[:, place].sum() / max(1, of[:, place].sum())),
            "low": float(shares[:, place].min()), "high": float(shares[:, place].max()),
        }
        for place in range(BINS)
        if of[:, place].all()
    ]  # fmt: skip
    base = alt.Chart(data(rows)).encode(
        x=alt.X("index:Q", title="index of the component, strongest first", scale=UNIT, axis=SHARE)
    )
    band = base.mark_area(opacity=0.2, aria=False).encode(y=alt.Y("low:Q", scale=UNIT, axis=SHARE), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("share:Q", title="kept", scale=UNIT, axis=SHARE),
        tooltip=[
            alt.Tooltip("index:Q", title="index", format=".1%"), alt.Tooltip("share:Q", title="kept", format=".1%"),
            alt.Tooltip("low:Q", title="smallest of the tasks", format=".1%"),
            alt.Tooltip("high:Q", title="largest of the tasks", format=".1%"),
        ],
    )  # fmt: skip
    told = [(percent(float(str(row["index"]))), percent(float(str(row["share"])))) for row in rows]
    return Figure(
        name="masks-index",
        title="Which components are kept",
        caption=f"Share of matrices in which a component is kept, by its index in percent of its matrix's components "
        f"(the strongest first), in {BINS} bins; the line is over all {len(learned.tasks)} tasks, the band reaches "
        "from the task that keeps least to the one that keeps most.",
        alternative=f"Kept share by index of the component: {listed_values(told)}.",
        spec=spec_of(alt.layer(band, line).properties(width=WIDTH, height=220)),
    )


def _index_counts(learned: Learned) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits on and bits [T, BINS] by task and bin of the relative index."""
    on, of = np.zeros((len(learned.tasks), BINS)), np.zeros((len(learned.tasks), BINS))
    for mask in learned.masks.values():
        bins = _bins(mask)
        for place in range(BINS):
            part = mask[..., bins == place]
            on[:, place] += part.sum(dim=(0, 2)).numpy()
            of[:, place] += part.shape[0] * part.shape[2]
    return on, of


def _bins(mask: Tensor) -> NDArray[np.int64]:
    """The bin of each component: its index plus a half over how many there are."""
    count = mask.shape[-1]
    bins: NDArray[np.int64] = np.minimum(((np.arange(count) + 0.5) * BINS / max(1, count)).astype(np.int64), BINS - 1)
    return bins
