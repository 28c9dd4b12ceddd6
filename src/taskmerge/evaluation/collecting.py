"""Everything that an evaluation found as one report, in the order of what was asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.judging import Evaluation, Finding
from taskmerge.evaluation.scores import Report, Row
from taskmerge.evaluation.selection import EXPERT
from taskmerge.evaluation.workload import DataSet
from taskmerge.specs.suite import DENSE
from taskmerge.version import __version__


@dataclass(frozen=True)
class Findings:
    """What every checkpoint is worth on every data set, and what these are, in the order in which they came in."""

    each: tuple[Finding, ...]
    data: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def report_of(asked: Evaluation, findings: Findings, notes: Sequence[str], timing: Mapping[str, float]) -> Report:
    """The report: everything in the order of the arguments, the corruptions and the suite's tasks."""
    place = _places(asked)
    rows = tuple(normalised(sorted((each.row for each in findings.each), key=lambda row: place(vars(row)))))
    comparisons = [each.comparison for each in findings.each if each.comparison is not None]
    correlations = [loss for each in findings.each for loss in each.correlations]
    features = [each.features for each in findings.each if each.features is not None]
    read = [f"{encoder.row} {encoder.checkpoint.note}" for encoder in asked.encoders if encoder.checkpoint.note]
    warnings = [warning for encoder in asked.encoders for warning in encoder.checkpoint.warnings]
    return Report(
        version=__version__, suite=asked.suite.name, split=asked.choice.split,
        checkpoints=tuple(encoder.to_dict() for encoder in asked.encoders),
        data=tuple(sorted(findings.data, key=place)), rows=rows,
        averages=averages(rows, {encoder.row: encoder.group for encoder in asked.encoders}),
        comparisons=tuple(sorted(comparisons, key=place)), correlations=tuple(sorted(correlations, key=place)),
        notes=tuple(dict.fromkeys([*notes, *read, *_closing_notes(asked, rows)])),
        warnings=tuple(dict.fromkeys([*warnings, *findings.warnings])), timing=timing,
        features=tuple(sorted(features, key=lambda one: place({**vars(one), "corruption": None}))),
    )  # fmt: skip


def described(data: DataSet, split: str) -> dict[str, Any]:
    """What was evaluated on: enough to know it again."""
    return {
        "task": data.task.name,
        "split": split,
        "n": len(data.items),
        "fingerprint": data.labelled.fingerprint,
        "classes": len(data.task.classes) if data.task.kind == "classification" else None,
        "skipped": data.items.skipped,
        "corruption": data.corruption.name if data.corruption else None,
        "severity": data.corruption.severity if data.corruption else None,
    }


def left_out(data: DataSet, split: str) -> str:
    """The warning about items that could not be decoded."""
    count = data.items.skipped
    are = "1 item cannot be decoded and is" if count == 1 else f"{count} items cannot be decoded and are"
    return f"split `{split}` of task `{data.task.name}`: {are} left out"


def _places(asked: Evaluation) -> Callable[[Mapping[str, Any]], tuple[int, int, int]]:
    """Where a row, a comparison or a data set belongs, however the data came in."""
    encoders = {encoder.row: place for place, encoder in enumerate(asked.encoders)}
    corruptions = [corruption and corruption.name for corruption in asked.choice.corrupt]
    tasks = [task.name for task in asked.suite.tasks]

    def place(entry: Mapping[str, Any]) -> tuple[int, int, int]:
        encoder = encoders[entry["encoder"]] if "encoder" in entry else 0
        return encoder, corruptions.index(entry["corruption"]), tasks.index(entry["task"])

    return place


def _closing_notes(asked: Evaluation, rows: Sequence[Row]) -> list[str]:
    """What a reader of the averages and comparisons should know."""
    notes = []
    if all(encoder.kind != "expert" for encoder in asked.encoders):
        notes.append("scores are not normalised: add `experts` to the checkpoints")
    useless = [
        f"{row.task} ({row.corruption})" if row.corruption else row.task
        for row in rows
        if row.encoder == EXPERT + row.task and row.normalised is None
    ]
    if useless:
        notes.append(f"not normalised, as the expert scores 0 or less: {', '.join(useless)}")
    if len({row.score.lower_is_better for row in rows}) > 1:
        notes.append("the plain average mixes scores with errors: compare normalised ones")
    others = [task.name for task in asked.suite.tasks if task.kind != "classification"]
    maps = [task.name for task in asked.suite.tasks if task.kind in DENSE]
    if maps and asked.features is not None:
        notes.append(f"features are not kept of tasks whose outputs are maps: {', '.join(maps)}")
    if others and (asked.compare or asked.loss_correlation):
        notes.append(f"compared on tasks of classification only: not on {', '.join(others)}")
    return notes
