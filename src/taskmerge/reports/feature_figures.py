"""Plots of features before and after: the same items through several encoders, by principal components and t-SNE."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from taskmerge.evaluation.feature_files import NAME, of_report, read_features
from taskmerge.evaluation.intervals import wilson
from taskmerge.evaluation.scores import FeatureSet
from taskmerge.evaluation.selection import BASE, EXPERT, EXPERTS
from taskmerge.reports.charting import data, listed_values, percent, shown_names, spec_of
from taskmerge.reports.feature_maps import Plane, neighbour_share, neighbours, principal
from taskmerge.reports.figures import Figure

MOST_TASKS = 2
"""Tasks that are drawn on a page: points take room."""
MOST_ITEMS = 50
CLASSES = 7
"""Colours of classes; the rarer ones share the last."""
OTHERS, CLASS_NAME = "others", 16
"""What the rarer classes are called together; characters of a class's name, which stands at every point."""
PANEL = 120


def feature_figures(
    document: Mapping[str, Any], sets: Sequence[FeatureSet], most: int = MOST_TASKS, items: int = MOST_ITEMS
) -> list[Figure]:  # fmt: skip
    """A plot a task, of those in which checkpoints differ most; none without features."""
    by_task: dict[str, dict[str, FeatureSet]] = {}
    for own in sets:
        by_task.setdefault(own.task, {})[_group(own.encoder)] = own
    drawn = sorted(by_task, key=lambda task: (-_spread(document, task), task))[:most]
    left = (
        f"; the {most} of {len(by_task)} tasks in which checkpoints differ most are drawn"
        if len(by_task) > most
        else ""
    )
    return [
        _figure(task, _chosen(document, by_task[task]), items, left, place)
        for place, task in enumerate(task for task in by_task if task in drawn)
    ]  # fmt: skip


def kept_features(folder: Path | None, document: Mapping[str, Any]) -> tuple[FeatureSet, ...]:
    """The features of a report's samples, from its folder; none where none were kept, or those of another run.

    Raises BadFile for a damaged file.
    """
    if folder is None or not (folder / NAME).exists():
        return ()
    return of_report(read_features(folder / NAME), document)


def _group(checkpoint: str) -> str:
    return EXPERTS if checkpoint.startswith(EXPERT) else checkpoint


def _spread(document: Mapping[str, Any], task: str) -> float:
    """How far the scores of a task's checkpoints lie apart, as shares."""
    scores = [
        row["score"] for row in document["rows"]
        if row["task"] == task and row["corruption"] is None
        and row["checkpoint"] in (_group(row["checkpoint"]), EXPERT + task)
    ]  # fmt: skip
    return max(scores, default=0.0) - min(scores, default=0.0)


def _chosen(document: Mapping[str, Any], sets: Mapping[str, FeatureSet]) -> dict[str, FeatureSet]:
    """Before, after, and the expert: the base or the first checkpoint, the best other one, and the experts."""
    means = {one["checkpoint"]: one["average"] for one in document["averages"] if one["corruption"] is None}
    others = [name for name in sets if name not in (BASE, EXPERTS)]
    best = max(others, key=lambda name: means.get(name, float("-inf")), default=None)
    first = BASE if BASE in sets else next((name for name in others if name != best), None)
    names = [name for name in (first, best, EXPERTS) if name is not None and name in sets]
    return {name: sets[name] for name in dict.fromkeys(names)}


def _figure(task: str, sets: Mapping[str, FeatureSet], items: int, left: str, place: int) -> Figure:
    """Rows of maps: principal components and t-SNE, each by label and by prediction; a column a checkpoint."""
    names = shown_names(sets)
    first = next(iter(sets.values()))
    colours = _colours(first)
    some = _drawn(first, colours, items)
    maps: list[tuple[str, dict[str, Plane]]] = [("PCA", {name: principal(own.features) for name, own in sets.items()})]
    close = {name: neighbours(own.features) for name, own in sets.items()}
    if all(plane is not None for plane in close.values()):
        maps.append(("t-SNE", {name: plane for name, plane in close.items() if plane is not None}))
    views = [f"{kind} by {by}" for kind, _ in maps for by in ("label", "prediction")]
    rows = [
        row
        for kind, planes in maps for by in ("label", "prediction") for name, own in sets.items()
        for row in _rows(f"{kind} by {by}", names[name], own, planes[name].points, some, by, colours)
    ]  # fmt: skip
    shares = [planes.share for planes in maps[0][1].values()]
    kept = ", ".join(f"{percent(share or 0.0)} in {names[name]}" for name, share in zip(sets, shares, strict=True))
    n = len(first.labels)
    return Figure(
        name=f"features-{place + 1}",
        title=f"Features of {shown_names([task])[task]}",
        caption=f"The same {len(some)} of {n} sampled items{_limited(first, colours)} through each encoder, as the "
        f"task's head sees them, in the plane of their first two principal components (which keep of the variance "
        f"{kept}){' and by t-SNE (seed 0)' if len(maps) > 1 else ''}, coloured by label and by prediction; axes have "
        f"no unit{left}.",
        alternative=f"{listed_values(_told(names, sets))}.",
        spec=_spec(rows, list(names.values()), views, colours, regression=first.kind == "regression"),
    )


def _told(names: Mapping[str, str], sets: Mapping[str, FeatureSet]) -> list[tuple[str, str]]:
    """What the maps show, in numbers: neighbours of one label, and predictions that are right."""
    told = []
    for name, own in sets.items():
        if own.kind == "regression":
            told.append((names[name], f"correlation of prediction and label {_correlation(own):.2f}"))
            continue
        alike, n = neighbour_share(own.features, own.labels)
        right = int((own.predicted == own.labels).sum())
        told.append((names[name], f"the nearest other item has the same label for {_share(alike, n)}, predictions are "
                                  f"right for {_share(right, n)} of {n} items"))  # fmt: skip
    return told


def _share(count: int, n: int) -> str:
    low, high = wilson(count, n)
    return f"{percent(count / n)} ({percent(low)} to {percent(high)})"


def _correlation(own: FeatureSet) -> float:
    if np.ptp(own.predicted) == 0 or np.ptp(own.labels) == 0:
        return 0.0
    return float(np.corrcoef(own.predicted, own.labels)[0, 1])


def _drawn(own: FeatureSet, colours: Mapping[float, str], items: int) -> NDArray[np.int64]:
    """So many items, evenly spread: over all; where most have a class without a colour, over the rest."""
    pool = np.flatnonzero(_coloured(own, colours)) if _limited(own, colours) else np.arange(len(own.labels))
    return pool[np.unique(np.linspace(0, len(pool) - 1, min(items, len(pool))).round().astype(np.int64))]


def _limited(own: FeatureSet, colours: Mapping[float, str]) -> str:
    """Which classes are drawn, where it isn't all of them."""
    if own.kind == "regression" or _coloured(own, colours).mean() >= 0.5:
        return ""
    return f" (of the {len(colours)} commonest of {len(np.unique(own.labels))} classes)"


def _coloured(own: FeatureSet, colours: Mapping[float, str]) -> NDArray[np.bool_]:
    return np.isin(own.labels, list(colours))


def _colours(own: FeatureSet) -> dict[float, str]:
    """The commonest labels by what they are called; the others share a colour."""
    counts = Counter(own.labels.tolist())
    common = sorted(counts, key=lambda label: (-counts[label], label))
    few = sorted(common if len(common) <= CLASSES + 1 else common[:CLASSES])
    called = [own.classes[int(label)] if int(label) < len(own.classes) else f"class {label:g}" for label in few]
    if len(set(called)) < len(called) or OTHERS in called:
        called = [f"{name} ({label:g})" for name, label in zip(called, few, strict=True)]
    return dict(zip(few, shown_names(called, CLASS_NAME).values(), strict=True))


def _rows(
    view: str, name: str, own: FeatureSet, points: NDArray[np.float64], some: NDArray[np.int64], by: str,
    colours: Mapping[float, str],
) -> list[dict[str, object]]:  # fmt: skip
    """The points of one map, within ±1."""
    largest = float(np.abs(points).max()) or 1.0
    values = own.labels if by == "label" else own.predicted
    regression = own.kind == "regression"
    return [
        {
            "map": _map(name, view), "x": round(float(points[item, 0]) / largest, 3),
            "y": round(float(points[item, 1]) / largest, 3),
            "of": float(values[item]) if regression else colours.get(float(values[item]), OTHERS),
        }
        for item in some
    ]  # fmt: skip


def _map(name: str, view: str) -> str:
    """What one panel is of."""
    return f"{name}, {view}"


def _spec(
    rows: Sequence[Mapping[str, object]], names: list[str], views: list[str], colours: Mapping[float, str], *,
    regression: bool,
) -> Mapping[str, object]:  # fmt: skip
    """Panels in the order of the views, a column a checkpoint."""
    scale = alt.Scale(domain=[-1.1, 1.1], nice=False)
    legend = alt.Legend(orient="bottom", columns=4)
    domain = [*colours.values(), *([OTHERS] if any(row["of"] == OTHERS for row in rows) else [])]
    colour = alt.Color("of:Q", title="value", legend=legend) if regression else alt.Color(
        "of:N", title=None, sort=domain, scale=alt.Scale(domain=domain), legend=legend
    )  # fmt: skip
    base = alt.Chart(data(rows)).mark_point(size=18).encode(
        x=alt.X("x:Q", scale=scale, axis=None), y=alt.Y("y:Q", scale=scale, axis=None), color=colour,
        tooltip=[alt.Tooltip("of:N" if not regression else "of:Q", title="is")],
    ).properties(width=PANEL, height=PANEL)  # fmt: skip
    panels = [
        base.transform_filter(alt.FieldEqualPredicate(field="map", equal=_map(name, view))).properties(
            title=alt.TitleParams([name, view], fontSize=11, anchor="middle")
        )
        for view in views
        for name in names
    ]
    return spec_of(alt.concat(*panels, columns=len(names)))
