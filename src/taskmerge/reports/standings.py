"""Which model of an evaluation is best, how good it is, against what, and how sure that is. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskmerge.evaluation.intervals import mean_interval, paired
from taskmerge.evaluation.metrics import METRICS
from taskmerge.evaluation.scores import Average, Report, Row
from taskmerge.evaluation.selection import BASE, EXPERTS, average_interval, is_reference, rows_of


@dataclass(frozen=True, slots=True)
class Standing:
    """One checkpoint's mean over its tasks. `value` with its 95% interval is None where scores of the tasks have no
    common unit; `normalised` is relative to the tasks' experts, None where those were not evaluated; `n` counts items.
    """

    name: str
    value: float | None
    low: float
    high: float
    normalised: float | None
    tasks: int
    n: int


@dataclass(frozen=True, slots=True)
class Lead:
    """How much better one checkpoint is than another: a difference of means with its 95% interval.

    `paired`: from the same items, one by one. Otherwise as of independent items, which is wider where they are the
    same.
    """

    other: str
    value: float
    low: float
    high: float
    paired: bool

    @property
    def settled(self) -> bool:
        """Whether the interval leaves no doubt about which is better."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Standings:
    """Every checkpoint of an evaluation on data as it is: those that are judged, the best first, then what they are
    judged against (`base`, the experts). `percent`: scores are shares; `lower_is_better`: they are errors."""

    models: tuple[Standing, ...]
    references: tuple[Standing, ...]
    percent: bool
    lower_is_better: bool

    def reference(self, name: str) -> Standing | None:
        """One of the references, if it was evaluated."""
        return next((own for own in self.references if own.name == name), None)


def standings(report: Report) -> Standings:
    """The checkpoints of a report in their order. Corrupted data do not count."""
    rows = [row for row in report.rows if row.corruption is None]
    kinds = {(METRICS[row.metric].percent, METRICS[row.metric].lower_is_better) for row in rows}
    percent, lower = kinds.pop() if len(kinds) == 1 else (False, False)
    alike = not kinds
    every = [_standing(mean, report, alike) for mean in report.averages if mean.corruption is None]
    models = [own for own in every if not is_reference(own.name)]
    references = [own for own in every if own.name in (BASE, EXPERTS)]
    return Standings(tuple(sorted(models, key=lambda own: _worth(own, lower))), tuple(references), percent, lower)


def lead(report: Report, first: str, second: str) -> Lead | None:
    """The difference of two checkpoints' means over the tasks that both have; None where they have no tasks of one unit
    in common."""
    ours, theirs = ({row.task: row for row in rows_of(report, name)} for name in (first, second))
    tasks = [task for task in ours if task in theirs and ours[task].metric == theirs[task].metric]
    if not tasks or len({METRICS[ours[task].metric].percent for task in tasks}) > 1:
        return None
    values, lows, highs = np.array([_difference(ours[task], theirs[task]) for task in tasks]).T
    low, high = mean_interval(values, lows, highs)
    return Lead(second, float(values.mean()), low, high, all(_is_paired(ours[task], theirs[task]) for task in tasks))


def _is_paired(first: Row, second: Row) -> bool:
    """Whether the scores are shares of the same items, and both say which are right."""
    if not METRICS[first.metric].proportion or first.correct is None or second.correct is None:
        return False
    return len(first.correct) == len(second.correct)


def _difference(first: Row, second: Row) -> tuple[float, float, float]:
    """Of two scores on one task's data: value, low, high."""
    if _is_paired(first, second) and first.correct is not None and second.correct is not None:
        return paired(first.correct, second.correct)
    ours, theirs = first.score, second.score
    value = ours.value - theirs.value
    below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    return value, value - below, value + math.hypot(ours.high - ours.value, theirs.value - theirs.low)


def _standing(mean: Average, report: Report, alike: bool) -> Standing:
    rows = rows_of(report, mean.encoder)
    low, high = average_interval(mean, report)
    value = mean.average if alike else None
    return Standing(mean.encoder, value, low, high, mean.normalised, len(rows), sum(row.score.n for row in rows))


def _worth(standing: Standing, lower: bool) -> tuple[float, str]:
    """What sorting puts first is best; names settle ties."""
    found = standing.value if standing.value is not None else standing.normalised
    if found is None:
        return 0.0, standing.name
    return (found if lower and standing.value is not None else -found), standing.name


def about(report: Report, name: str) -> Mapping[str, Any]:
    """What the report says of a checkpoint besides scores; empty for the experts together."""
    return next((own for own in report.checkpoints if own["name"] == name), {})
