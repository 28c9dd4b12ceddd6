"""Thresholds: what a report must hold, as records of what was wanted and found, and in words what fell short. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taskmerge.errors import Missed, UsageError, unknown_name
from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.selection import average_interval, is_own, is_reference

AVERAGE, NORMALISED = "average", "normalised"
Flag = Literal["fail_under", "fail_over"]
Record = dict[str, Any]
SLACK = 1e-12
"""A difference below it is rounding: a score that equals the bound, or differs by just the tolerance, passes."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A bound on the mean (`average`, `normalised`) or on one task, of one checkpoint or (None) of all that count."""

    flag: Flag
    target: str
    name: str
    bound: float
    checkpoint: str | None = None

    @property
    def option(self) -> str:
        return "--" + self.flag.replace("_", "-")

    def missed_by(self, value: float) -> bool:
        beyond = self.bound - value if self.flag == "fail_under" else value - self.bound
        return beyond > SLACK


def thresholds(
    fail_under: Iterable[str],
    fail_over: Iterable[str],
    *,
    tasks: Mapping[str, str],
    checkpoints: Sequence[str],
) -> tuple[Threshold, ...]:
    """What `NAME=BOUND` and `CHECKPOINT/NAME=BOUND` mean, before anything is evaluated.

    NAME is `average`, `normalised` or a task; `tasks` gives each task's metric, `checkpoints` their names. Raises
    UsageError for unknown names, bounds that are no fraction, and a bound on the wrong side of a metric.
    """
    words = [("fail_under", text) for text in fail_under] + [("fail_over", text) for text in fail_over]
    flags: dict[str, Flag] = {"fail_under": "fail_under", "fail_over": "fail_over"}
    return tuple(_threshold(flags[flag], text, tasks, checkpoints) for flag, text in words)


def _threshold(flag: Flag, text: str, tasks: Mapping[str, str], checkpoints: Sequence[str]) -> Threshold:
    option = "--" + flag.replace("_", "-")
    target, equals, number = text.rpartition("=")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not equals or not target or not math.isfinite(bound):
        raise UsageError(f"`{text}` is no threshold", where=option, hint="such as average=0.80 or mnist=0.9")
    names = [AVERAGE, NORMALISED, *tasks]
    checkpoint, slash, name = target.rpartition("/")
    if target in names:
        checkpoint, name = "", target
    elif slash and checkpoint not in checkpoints:
        raise unknown_name("checkpoint", checkpoint, checkpoints, where=f"{option} {text}")
    if name not in names:
        raise unknown_name("task or mean", name, names, where=f"{option} {text}")
    _check_side(flag, text, name, bound, tasks)
    return Threshold(flag, target, name, bound, checkpoint or None)


def _check_side(flag: Flag, text: str, name: str, bound: float, tasks: Mapping[str, str]) -> None:
    """A bound makes sense for what it bounds."""
    metrics = [METRICS[tasks[name]]] if name in tasks else [METRICS[metric] for metric in tasks.values()]
    lower = all(metric.lower_is_better for metric in metrics) and name != NORMALISED
    option = "--" + flag.replace("_", "-")
    if name in tasks or lower:
        if lower and flag == "fail_under":
            hint = f"use --fail-over {text}"
            raise UsageError(f"lower is better for `{name}` ({metrics[0].name})", where=option, hint=hint)
        if not lower and flag == "fail_over":
            hint = f"use --fail-under {text}"
            raise UsageError(f"higher is better for `{name}` ({metrics[0].name})", where=option, hint=hint)
    if bound > 1 and name != NORMALISED and all(metric.percent for metric in metrics):
        raise UsageError(
            f"`{text}` can never hold: scores are fractions", where=option, hint=f"did you mean {name}={bound / 100:g}?"
        )


def against_thresholds(report: Report, wanted: Iterable[Threshold]) -> tuple[Record, ...]:
    """One record for each threshold and each checkpoint that it holds for.

    Without a named checkpoint those are all but `base` and the experts, which are there to compare with; and these
    too where there is nothing else. Corrupted data is left to the clean, where there is any. Raises UsageError where a
    score does not exist.
    """
    return tuple(_record(threshold, number) for threshold in wanted for number in _meant(report, threshold))


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that a threshold may be for: a row's score or a mean."""

    checkpoint: str
    task: str | None
    metric: str
    value: float
    low: float | None
    high: float | None
    corruption: str | None
    severity: int | None


def _meant(report: Report, threshold: Threshold) -> list[_Number]:
    """What a threshold is for."""
    numbers = [number for number in _numbers(report, threshold) if threshold.checkpoint in (None, number.checkpoint)]
    numbers = [number for number in numbers if number.corruption is None] or numbers
    if threshold.checkpoint is None:
        numbers = [number for number in numbers if not is_reference(number.checkpoint)] or numbers
    if not numbers:
        hint = "add `experts` to the checkpoints" if threshold.name == NORMALISED else None
        raise UsageError(f"`{threshold.target}` has no score", where=threshold.option, hint=hint)
    return numbers


def _numbers(report: Report, threshold: Threshold) -> Iterator[_Number]:
    """Every number in the report that has the threshold's name."""
    if threshold.name not in (AVERAGE, NORMALISED):
        for row in report.rows:
            if row.task == threshold.name and is_own(row):
                score = row.score
                where = (row.corruption, row.severity)
                yield _Number(row.encoder, row.task, row.metric, score.value, score.low, score.high, *where)
        return
    for mean in report.averages:
        where = (mean.corruption, mean.severity)
        if threshold.name == AVERAGE:
            yield _Number(mean.encoder, None, AVERAGE, mean.average, *average_interval(mean, report), *where)
        elif mean.normalised is not None:
            yield _Number(mean.encoder, None, NORMALISED, mean.normalised, None, None, *where)


def _record(threshold: Threshold, number: _Number) -> Record:
    return {
        "kind": threshold.flag, "name": threshold.target, "checkpoint": number.checkpoint, "task": number.task,
        "metric": number.metric, "wanted": threshold.bound, "found": number.value,
        "passed": not threshold.missed_by(number.value), "difference": None,
        "low": number.low, "high": number.high, "tolerance": None,
        "corruption": number.corruption, "severity": number.severity,
    }  # fmt: skip


def missed(records: Iterable[Mapping[str, Any]]) -> Missed | None:
    """The error that says what fell short, or None if everything passed."""
    records = list(records)
    failed = [record for record in records if not record["passed"]]
    if not failed:
        return None
    lines = "\n".join(f"  {told(record)}" for record in failed)
    return Missed(f"{len(failed)} of {len(records)} checks failed\n{lines}")


def told(record: Mapping[str, Any]) -> str:
    """One check in words: `merged: mnist 0.871, wanted at least 0.9 (95% interval 0.849 to 0.890)`."""
    name = record["task"] or record["metric"]
    where = f" on {record['corruption']} {record['severity']}" if record["corruption"] else ""
    has_interval = record["low"] is not None
    if record["kind"] == "baseline":
        span = f"; 95% interval {record['low']:+.4f} to {record['high']:+.4f}" if has_interval else ""
        return (
            f"{record['checkpoint']}: {name}{where} {record['found']:.4f}, baseline {record['wanted']:.4f} "
            f"({record['difference']:+.4f}{span}; tolerance {record['tolerance']:g})"
        )
    side = "at least" if record["kind"] == "fail_under" else "at most"
    span = f" (95% interval {record['low']:.4f} to {record['high']:.4f})" if has_interval else ""
    return f"{record['checkpoint']}: {name}{where} {record['found']:.4f}, wanted {side} {record['wanted']:g}{span}"
