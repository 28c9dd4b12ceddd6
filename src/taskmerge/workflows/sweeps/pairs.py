"""Cross-task performance against merge performance, over ordered pairs of tasks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from taskmerge.evaluation.intervals import Z
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.opening import Opened, needs
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.running import Measure, Planned

FEWEST = 3
"""Points below which a correlation says nothing."""


@dataclass(frozen=True)
class PairsSweep:
    """For ordered pairs (A, B): A's encoder with B's head on B's data, against the average of A and B there.

    Jung et al. (SyMerge): whether experts work on each other's tasks says how well they merge.
    """

    opened: Opened
    kind: str = "pairs"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def points(self) -> list[Planned]:
        """A point is one encoder on all tasks that it is asked about: an expert, or the average of two."""
        needs(self.opened, self.kind, tasks=2)
        judge = self.opened.judge
        return [Planned({"encoders": list(own)}, judge.items(self._asked(own))) for own in self._encoders()]

    def _encoders(self) -> list[tuple[str, ...]]:
        names = self.opened.names
        pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
        return [*((name,) for name in names), *pairs]

    def _asked(self, encoders: Sequence[str]) -> list[str]:
        """The tasks that an encoder is scored on: an expert on those of others, a pair on its own."""
        if len(encoders) == 1:
            return [name for name in self.opened.names if name not in encoders]
        return list(encoders)

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        for own in self._encoders():
            yield {"encoders": list(own)}, partial(self._scored, own)

    def _scored(self, own: Sequence[str]) -> dict[str, Any]:
        self.opened.encoder.average(own)
        return {"scores": self.opened.judge.scores(" and ".join(own), self._asked(own))}

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        """Pairs with both scores, relative to B's expert; Pearson's r and p per pair, and averaged per model A.

        Both are relative to the expert's score, so that tasks of different difficulty and metrics can be compared.
        """
        by_encoder = {own: _by_task(found[{"encoders": list(own)}]["scores"]) for own in self._encoders()}
        pairs = []
        for first, second in permutations(self.opened.names, 2):
            both = next(own for own in ((first, second), (second, first)) if own in by_encoder)
            cross, merged = by_encoder[first,][second], by_encoder[both][second]
            pairs.append({
                "encoder": first, "task": second, "cross": _pick(cross), "merged": _pick(merged),
                "cross_normalised": means.of([cross])["normalised"],
                "merged_normalised": means.of([merged])["normalised"],
            })  # fmt: skip
        return {"pairs": pairs, "per_pair": _correlation(pairs), "per_model": _correlation(_averaged(pairs))}


def _by_task(scores: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {entry["task"]: entry for entry in scores}


def _pick(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("score", "low", "high", "n")}


def _averaged(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over B of every model A."""
    names = list(dict.fromkeys(pair["encoder"] for pair in pairs))
    found = []
    for name in names:
        own = [pair for pair in pairs if pair["encoder"] == name]
        keys = ("cross_normalised", "merged_normalised")
        known = all(pair[key] is not None for pair in own for key in keys)
        found.append({key: fmean(pair[key] for pair in own) if known else None for key in keys})
    return found


def _correlation(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pearson's r with its 95% interval (Fisher's z) and two-sided p, as if entries were independent: pairs share
    models, so theirs are too sure. None where there are too few, or one side is constant."""
    keys = ("cross_normalised", "merged_normalised")
    known = [[entry[key] for key in keys] for entry in entries if all(entry[key] is not None for key in keys)]
    columns = list(zip(*known, strict=True))
    if len(known) < FEWEST or any(len(set(column)) == 1 for column in columns):
        return {"r": None, "p": None, "low": None, "high": None, "n": len(known)}
    r = float(np.clip(np.corrcoef(columns)[0, 1], -1, 1))
    low, high = fisher_interval(r, len(known))
    return {"r": r, "p": chance_of(r, len(known)), "low": low, "high": high, "n": len(known)}


def chance_of(r: float, n: int) -> float:
    """The two-sided p of Pearson's r of n independent normal pairs: t = r √((n-2)/(1-r²)) with n - 2 degrees."""
    from scipy.special import betainc  # half a second of imports

    return float(betainc((n - 2) / 2, 0.5, 1 - r * r))


def fisher_interval(r: float, n: int) -> tuple[float | None, float | None]:
    """The 95% interval of Pearson's r by Fisher's z; None for three pairs, and at r = ±1."""
    if n <= FEWEST or abs(r) >= 1:
        return None, None
    middle, half = math.atanh(r), Z / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)
