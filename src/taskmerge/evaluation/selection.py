"""Which rows of a report belong to which mean, checkpoint and table."""

import numpy as np

from taskmerge.evaluation.intervals import Interval, mean_interval
from taskmerge.evaluation.scores import Average, Report, Row

BASE, EXPERTS, EXPERT = "base", "experts", "expert:"
"""The base; the experts' common mean, each on its own task; and how the name of one expert begins."""


def is_reference(checkpoint: str) -> bool:
    """Whether a checkpoint is there for others to be compared with."""
    return checkpoint in (BASE, EXPERTS) or checkpoint.startswith(EXPERT)


def is_own(row: Row) -> bool:
    """Whether a row is no part of a cross matrix alone: an expert counts on its own task."""
    return not row.encoder.startswith(EXPERT) or row.encoder == EXPERT + row.task


def checkpoints_of(report: Report) -> list[str]:
    """Names of all encoders with rows, in their order."""
    return list(dict.fromkeys(row.encoder for row in report.rows))


def rows_of(report: Report, name: str, corruption: str | None = None, severity: int | None = None) -> list[Row]:
    """The rows that a mean is over: those of one checkpoint, or (`experts`) of each expert on its own task."""
    at = [row for row in report.rows if (row.corruption, row.severity) == (corruption, severity)]
    if name == EXPERTS:
        return [row for row in at if row.encoder == EXPERT + row.task]
    return [row for row in at if row.encoder == name]


def average_interval(average: Average, report: Report) -> Interval:
    """The 95% interval of a plain mean over tasks, whose items are independent of each other."""
    rows = [score.score for score in rows_of(report, average.encoder, average.corruption, average.severity)]
    if not rows:
        return average.average, average.average
    values, lows, highs = (np.array([getattr(score, key) for score in rows]) for key in ("value", "low", "high"))
    return mean_interval(values, lows, highs)
