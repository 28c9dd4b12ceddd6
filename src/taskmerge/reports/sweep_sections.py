"""Sweeps as sections of a page: each kind's answer in a sentence, its plots, and the numbers behind them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from taskmerge.reports.sections import Prose, Section
from taskmerge.reports.sweep_figures import sweep_figures
from taskmerge.reports.sweep_tables import NAMES, plain_in, scale_in, score_of, sweep_tables

Document = Mapping[str, Any]
TITLES: Mapping[str, str] = {
    "rank": "How many components to keep", "coefficient": "How far to go", "routing": "One model a task",
    "subsets": "How many tasks to merge", "components": "What single components do",
    "landscape": "The loss around experts and merges", "pairs": "Which experts fit together",
}  # fmt: skip
WARNING = (
    "These scores are of labelled items: a rank or coefficient that is read off these plots has been chosen with their "
    "labels, and its score here is no estimate of what it is worth elsewhere. `taskmerge merge --choose agreement` "
    "chooses without labels."
)


def sweep_sections(report: Mapping[str, Any]) -> list[Section]:
    """A section for every kind of sweep in the part `sweeps` of a report; none without that part."""
    if not (sweeps := report.get("sweeps")):
        return []
    found = []
    for kind in sweeps["kinds"]:
        alone = {key: value for key, value in sweeps.items() if key not in TITLES or key == kind}
        figures = sweep_figures(alone)
        tables = sweep_tables(alone, references=kind == "rank")
        warned = (Prose(WARNING, "note"),) if kind in ("rank", "coefficient") else ()
        found.append(Section(TITLES[kind], f"sweep-{kind}", _lead(kind, sweeps), (*figures, *tables, *warned)))
    return found


def _lead(kind: str, sweeps: Document) -> str:
    """What a sweep says, in a sentence."""
    if kind in ("rank", "coefficient"):
        return _best(sweeps[kind]["points"], sweeps, kind)
    if kind == "routing":
        return _best(sweeps[kind]["points"], sweeps, "rank", "origin")
    if kind == "subsets":
        return _falls(sweeps)
    if kind == "pairs":
        r = sweeps[kind]["per_model"]["r"]
        told = "too few models to say" if r is None else f"Pearson's r over models is {r:.2f}"
        return f"Whether an expert works on other tasks against whether it merges well: {told}."
    if kind == "landscape":
        shares = sweeps[kind]["variance_shares"]
        return f"The plane holds {100 * sum(shares):.1f}% of the variance of experts, average and base."
    own = [change["change"] for point in sweeps[kind]["points"] if point["component"] == 1
           for change in point["changes"] if change["task"] == point["task"]]  # fmt: skip
    known = [change for change in own if change is not None]
    return f"Adding its largest component changes a task's own loss by {fmean(known):+.3g} on average." if known else ""


def _best(points: Sequence[Document], sweeps: Document, across: str, line: str = "method") -> str:
    """Where each line is highest."""
    best: dict[str, Document] = {}
    for point in points:
        if point.get("direction") == "reversed" or score_of(point)[0] is None:
            continue
        held = best.get(point[line])
        if held is None or _value(point) > _value(held):
            best[point[line]] = point
    percent = scale_in(sweeps) == 100
    told = [f"{NAMES.get(name, f'from the {name}')} {_told(_value(point), percent)} at {across} {point[across]}"
            for name, point in best.items()]  # fmt: skip
    return f"Highest on these labels: {'; '.join(told)}." if told else ""


def _value(point: Document) -> float:
    value = score_of(point)[0]
    return float("-inf") if value is None else value


def _told(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}%" if percent else f"{value:.3g}"


def _falls(sweeps: Document) -> str:
    """What every method keeps with all tasks of what single experts have."""
    sizes = sweeps["subsets"]["sizes"]
    most = max(size["tasks"] for size in sizes)
    key, percent = "average" if plain_in(sweeps) else "normalised", scale_in(sweeps) == 100
    told = [f"{NAMES[size['method']]} {_told(size[key]['mean'], percent)}" for size in sizes
            if size["tasks"] == most and size[key] is not None]  # fmt: skip
    return f"With all {most} tasks: {'; '.join(told)}."
