"""A report against an earlier one: the difference of every score, with its paired interval. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.evaluation.intervals import paired
from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.scores import Report, Row
from taskmerge.evaluation.selection import checkpoints_of, is_reference
from taskmerge.evaluation.thresholds import SLACK, Record

SHOWN = 6
"""Scores that a message names."""
Condition = tuple[str | None, int | None]
"""A corruption and its severity; None twice for the pictures as they are."""


def check_comparable(
    baseline: Report, *, suite: str, split: str, names: Sequence[str], tasks: Collection[str],
    conditions: Collection[Condition],
) -> None:  # fmt: skip
    """What can be said before anything is evaluated: that these checkpoints (`names`) will have the scores of the
    baseline that they are compared with.

    Raises Mismatch for another suite or split, where no checkpoint is the same, and for scores that will be lacking.
    """
    pairs = _matched(names, checkpoints_of(baseline))
    _check_same("suite", suite, baseline.suite)
    _check_same("split", split, baseline.split)
    rows = [row for row in baseline.rows if row.encoder in pairs]
    _check_lost(row for row in rows if row.task not in tasks or (row.corruption, row.severity) not in conditions)


def check_data(baseline: Report, data: Iterable[Mapping[str, Any]]) -> None:
    """Raises Mismatch where data sets, as reports describe them, hold other items than the baseline's."""
    fingerprints = {_data_place(own): own["fingerprint"] for own in baseline.data}
    changed = [
        str(own["task"]) for own in data
        if fingerprints.get(_data_place(own), own["fingerprint"]) != own["fingerprint"]
    ]  # fmt: skip
    if changed:
        hint = "scores of other items cannot be compared: evaluate with the same data and --limit"
        raise Mismatch(f"the data differs from the baseline's: {', '.join(changed)}", where="--baseline", hint=hint)


def against_baseline(
    report: Report, baseline: Report, tolerance: float = 0.0
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """(records, warnings): every score of the baseline that the report has too, and the difference between them.

    A score passes unless it is worse by more than `tolerance`. The interval is that of the difference, from the stored
    bits of each item, where the metric is a share of items; None for other metrics. Checkpoints are matched by name; if
    each report has one besides `base` and the experts, those two are matched.

    Raises UsageError for a negative tolerance, Mismatch for another suite, split, metric or other data, and where
    nothing can be compared.
    """
    if not tolerance >= 0:
        raise UsageError(f"{tolerance} is no tolerance", where="--tolerance", hint="such as 0.005")
    pairs = _matched(checkpoints_of(report), checkpoints_of(baseline))
    _check_same("suite", report.suite, baseline.suite)
    _check_same("split", report.split, baseline.split)
    check_data(baseline, report.data)
    now = {(row.encoder, *_place(row)): row for row in report.rows}
    twins = [(now.get((pairs[row.encoder], *_place(row))), row) for row in baseline.rows if row.encoder in pairs]
    _check_lost(row for twin, row in twins if twin is None)
    records = [_baseline_record(twin, row, tolerance) for twin, row in twins if twin is not None]
    return tuple(records), _unmatched(report, baseline, pairs)


def _baseline_record(row: Row, before: Row, tolerance: float) -> Record:
    if row.metric != before.metric:
        what = f"`{row.task}` is scored by {row.metric} here and by {before.metric} in the baseline"
        raise Mismatch(what, where="--baseline")
    difference = row.score.value - before.score.value
    worse = difference if row.score.lower_is_better else -difference
    low = high = None
    if METRICS[row.metric].proportion and row.correct is not None and before.correct is not None:
        _, low, high = paired(row.correct, before.correct)
    return {
        "kind": "baseline", "name": f"{row.encoder}/{row.task}", "checkpoint": row.encoder, "task": row.task,
        "metric": row.metric, "wanted": before.score.value, "found": row.score.value,
        "passed": worse <= tolerance + SLACK, "difference": difference, "low": low, "high": high,
        "tolerance": tolerance, "corruption": row.corruption, "severity": row.severity,
    }  # fmt: skip


def _matched(now: Sequence[str], then: Sequence[str]) -> dict[str, str]:
    """Checkpoints of the baseline (`then`), and whom each is compared with."""
    pairs = {name: name for name in then if name in now}
    (own, earlier) = ([name for name in names if not is_reference(name)] for names in (now, then))
    if len(own) == len(earlier) == 1:
        pairs[earlier[0]] = own[0]
    if not any(not is_reference(name) for name in pairs) and (own or not pairs):
        what = f"no checkpoint of this run ({', '.join(now)}) is in the baseline ({', '.join(then)})"
        raise Mismatch(what, where="--baseline", hint="name them alike: `name=path`")
    return pairs


def _check_same(field: str, here: str, there: str) -> None:
    if here != there:
        raise Mismatch(f"the baseline's {field} is `{there}`, this run's is `{here}`", where="--baseline")


def _check_lost(rows: Iterable[Row]) -> None:
    lost = [f"{row.encoder}: {row.task}{_corrupted(row)}" for row in rows]
    if lost:
        hint = "evaluate the same tasks and corruptions as the baseline"
        what = f"the baseline has scores that this run lacks: {listed(lost, SHOWN, plain=True)}"
        raise Mismatch(what, where="--baseline", hint=hint)


def _unmatched(report: Report, baseline: Report, pairs: Mapping[str, str]) -> tuple[str, ...]:
    """What is in one of the reports only, for the curious."""
    notes = []
    gone = [name for name in checkpoints_of(baseline) if name not in pairs and not is_reference(name)]
    if gone:
        notes.append(f"checkpoints of the baseline that are not compared: {', '.join(gone)}")
    new = [name for name in checkpoints_of(report) if name not in pairs.values() and not is_reference(name)]
    if new:
        notes.append(f"checkpoints that the baseline does not have: {', '.join(new)}")
    tasks = {row.task for row in baseline.rows}
    fresh = list(dict.fromkeys(row.task for row in report.rows if row.task not in tasks))
    if fresh:
        notes.append(f"tasks that the baseline does not have: {', '.join(fresh)}")
    if report.version != baseline.version:
        notes.append(f"the baseline was written by taskmerge {baseline.version}, this is {report.version}")
    return tuple(notes)


def _place(row: Row) -> tuple[str, str, str | None, int | None]:
    return row.task, row.head, row.corruption, row.severity


def _data_place(data: Mapping[str, Any]) -> tuple[Any, ...]:
    return data["task"], data["split"], data.get("corruption"), data.get("severity")


def _corrupted(row: Row) -> str:
    return f" ({row.corruption} {row.severity})" if row.corruption else ""
