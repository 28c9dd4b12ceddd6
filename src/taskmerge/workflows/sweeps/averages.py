"""Means over tasks of one point's scores: plain where metrics are alike, and relative to the experts'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from taskmerge.evaluation.intervals import mean_interval
from taskmerge.evaluation.metrics import METRICS
from taskmerge.specs.suite import Task


@dataclass(frozen=True)
class Means:
    """How means are taken: over which tasks, relative to which scores of their experts."""

    tasks: Mapping[str, Task]
    experts: Mapping[str, float]

    def of(self, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`average` {value, low, high}, None over scores of unlike scales; `normalised`, None where it says nothing.

        Both are None where a score is missing.
        """
        if any(entry["score"] is None for entry in scores):
            return {"average": None, "normalised": None}
        alike = {self._scale(entry["task"]) for entry in scores}
        relative = [self._relative(entry) for entry in scores]
        known = [value for value in relative if value is not None]
        return {
            "average": _average(scores) if len(alike) == 1 else None,
            "normalised": fmean(known) if known and len(known) == len(relative) else None,
        }

    def _scale(self, name: str) -> tuple[bool, bool]:
        metric = METRICS[self.tasks[name].metric]
        return metric.percent, metric.lower_is_better

    def _relative(self, entry: Mapping[str, Any]) -> float | None:
        """Score / expert's, for errors expert's / score; None where the denominator is not positive."""
        score, expert = entry["score"], self.experts.get(entry["task"])
        if expert is None:
            return None
        above, below = (expert, score) if METRICS[self.tasks[entry["task"]].metric].lower_is_better else (score, expert)
        return above / below if below > 0 else None


def _average(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The plain mean over independent tasks with its 95% interval."""
    values, lows, highs = (np.array([entry[key] for entry in scores]) for key in ("score", "low", "high"))
    low, high = mean_interval(values, lows, highs)
    return {"value": float(values.mean()), "low": low, "high": high}


def over(values: Sequence[float]) -> dict[str, Any]:
    """The mean of several values, its standard error (None of one value), and how many there are."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else None
    return {"mean": fmean(values), "se": error, "count": count}
