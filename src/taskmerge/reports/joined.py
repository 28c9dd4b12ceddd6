"""The scores of several runs as one evaluation, where they are of the same tasks, split and items. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.results import from_json
from taskmerge.evaluation.scores import Report, Row, Score
from taskmerge.evaluation.selection import EXPERT, EXPERTS, is_own, is_reference
from taskmerge.reports.runs import Run

Place = tuple[str, str, tuple[tuple[str, str, int], ...]]
"""Suite, split, and the (task, metric, items) that were scored: what must agree for means to be compared."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The evaluations that can be compared, those of most checkpoints first, and which run each checkpoint is from."""

    reports: tuple[Report, ...]
    origins: Mapping[str, str]


def scores_of(run: Run) -> Report | None:
    """The scores that a run holds, as an evaluation; None where it has none."""
    if run.kind == "eval":
        return from_json(run.document, run.name)
    scored = run.document.get("scores") if run.kind == "adapt" else None
    return None if scored is None else _adapted(run, scored)


def join(runs: Sequence[Run]) -> Joined:
    """Checkpoints of all runs under names of their own; base and experts are taken from the first that has them."""
    groups: dict[Place, list[Row]] = {}
    prints: dict[Place, dict[str, str]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    origins: dict[str, str] = {}
    notes: dict[Place, tuple[str, str]] = {}
    for run in runs:
        report = scores_of(run)
        if report is None:
            continue
        for place, rows in _places(report, prints).items():
            renamed = _renamed(rows, run, origins, groups.setdefault(place, []))
            groups[place] += [row for row, _ in renamed]
            for row, old in renamed:
                origins.setdefault(row.encoder, run.name)
                known = next((own for own in report.checkpoints if own["name"] == old), {})
                about.setdefault(row.encoder, {**known, "name": row.encoder})
            notes[place] = report.suite, report.split
    every = [_report(rows, *notes[place], about) for place, rows in groups.items()]
    every.sort(key=lambda report: (-len({row.encoder for row in report.rows}), -len(report.rows)))
    return Joined(tuple(every), origins)


def _places(report: Report, prints: dict[Place, dict[str, str]]) -> dict[Place, list[Row]]:
    """The rows on data as it is, by what was scored; other items than an earlier run's get a place of their own."""
    rows = [row for row in report.rows if row.corruption is None and is_own(row)]
    tasks = {row.task: (row.task, row.metric, row.score.n) for row in rows}
    suite, known = report.suite, {own["task"]: own["fingerprint"] for own in report.data if not own.get("corruption")}
    place: Place = (suite, report.split, tuple(sorted(tasks.values())))
    while any(prints.setdefault(place, {}).get(task, own) != own for task, own in known.items()):
        place = (f"{place[0]} (other items)", *place[1:])
    prints.setdefault(place, {}).update(known)
    return {place: rows} if rows else {}


def _renamed(
    rows: Sequence[Row], run: Run, origins: Mapping[str, str], there: Sequence[Row]
) -> list[tuple[Row, str]]:  # fmt: skip
    """Rows under names that no other run has, each with its old one, without references that are there already."""
    held = {row.encoder for row in there}
    found = []
    for row in rows:
        if is_reference(row.encoder):
            found += [] if row.encoder in held else [(row, row.encoder)]
            continue
        taken = origins.get(row.encoder, run.name) != run.name
        found.append((replace(row, encoder=f"{run.name}: {row.encoder}") if taken else row, row.encoder))
    return found


def _report(rows: Sequence[Row], suite: str, split: str, about: Mapping[str, Mapping[str, Any]]) -> Report:
    rows = normalised(rows)
    groups = {row.encoder: EXPERTS if row.encoder.startswith(EXPERT) else row.encoder for row in rows}
    names = dict.fromkeys(row.encoder for row in rows)
    return Report(
        version="", suite=suite, split=split, checkpoints=tuple(about[name] for name in names), data=(),
        rows=tuple(rows), averages=averages(rows, groups),
    )  # fmt: skip


def _adapted(run: Run, scored: Mapping[str, Any]) -> Report:
    """The scores in an adaptation's report. They hold no single items, so no paired intervals."""
    document = run.document
    protocol = document["protocol"]["words"]
    rows = [
        Row(
            encoder=run.name, task=row["task"], head=row["task"], split=scored["split"], metric=row["metric"],
            score=Score(row["score"], row["n"], row["low"], row["high"],
                        lower_is_better=METRICS[row["metric"]].lower_is_better),
            protocol=protocol,
        )
        for row in scored["rows"]
    ]  # fmt: skip
    about = {run.name: {"name": run.name, "kind": "adapted", "protocol": protocol}}
    return _report(rows, document["suite"], scored["split"], about)
