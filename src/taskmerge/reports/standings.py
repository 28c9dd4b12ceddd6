"""Which model of an evaluation is best, how good it is, against what, and how sure that is. Pure."""

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
    """How much better one checkpoint is than another: a difference of means with its paired 95% interval."""

    other: str
    value: float
    low: float | None
    high: float | None

    @property
    def settled(self) -> bool:
        """Whether the interval leaves no doubt about which is better."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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
    """The difference of two checkpoints' means over the tasks that both have, from the same items where each task
    keeps one bit an item (then with a paired interval); None where they have no task of one unit in common."""
    ours, theirs = ({row.task: row for row in rows_of(report, name)} for name in (first, second))
    tasks = [task for task in ours if task in theirs and ours[task].metric == theirs[task].metric]
    if not tasks or len({(METRICS[ours[task].metric].percent) for task in tasks}) > 1:
        return None
    differences = [_difference(ours[task], theirs[task]) for task in tasks]
    values = np.array([value for value, _, _ in differences])
    lows, highs = ([own[place] for own in differences] for place in (1, 2))
    if any(bound is None for bound in (*lows, *highs)):
        return Lead(second, float(values.mean()), None, None)
    low, high = mean_interval(values, np.array(lows, dtype=float), np.array(highs, dtype=float))
    return Lead(second, float(values.mean()), low, high)


def _difference(first: Row, second: Row) -> tuple[float, float | None, float | None]:
    """Of two scores on one task's data; an interval where it is a share and both say which items are right."""
    bits = first.correct, second.correct
    if (
        METRICS[first.metric].proportion
        and bits[0] is not None
        and bits[1] is not None
        and len(bits[0]) == len(bits[1])
    ):
        return paired(bits[0], bits[1])
    return first.score.value - second.score.value, None, None


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
