"""What a merge keeps of each expert, forecast from spectra and overlaps alone, without data. Pure.

Kept is the share of what fine-tuning gained over the base: (score - base's) / (expert's - base's). The forecast sees a
merge's matrices from each task's place, relative to its own task vector τ_t: how much of τ_t is in it (*signal*), what
other tasks put into the leading spaces of τ_t (*load*), and all else that they put in (*spread*). In these

    kept_t = S √signal_t - L load_t - P spread_t,

0 at the base, S at the expert. `NUMBERS` are fitted on subsets of the embedded example's tasks, on which this form was
chosen too (`benchmarks/forecast.py`); how far they carry elsewhere is in docs/forecast.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
METHODS = ("average", "task_arithmetic", "truncated_task_arithmetic", "cart", "tsv_m")
"""What there is a forecast of."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was fitted: the weights of signal, load and spread."""

    signal: float
    load: float
    spread: float


NUMBERS = Numbers(0.864, 8.91, 0.0782)


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge without data: `rank` is a share of the full rank."""

    method: str
    rank: float | None = None
    coefficient: float | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What a spectrum report says of the matrices of T tasks, all together.

    `norms` [T] ‖τ_t‖, `cosines` [T, T], `interference` [T, T] the share of each task's (rows) leading components that
    lies in another's spaces (the mean over matrices), `energies` [T, R] the energy at each of `shares` [R] of the full
    rank; `apart` and `energies_apart` are norms and energies of the differences from the average. `rank` is the share
    of the full rank that leading spaces have.
    """

    tasks: tuple[str, ...]
    norms: Floats
    cosines: Floats
    interference: Floats
    shares: Floats
    energies: Floats
    apart: Floats
    energies_apart: Floats
    rank: float

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Ground | None":
        """From a report; None where it lacks something: a base, a second task, shares of the full rank, or a task that
        differs from base and average."""
        groups = {one["space"]: one for one in document["groups"] if one["by"] == "all"}
        settings, tasks = document["settings"], document["tasks"]
        texts = [settings["rank"], *settings["ratios"]]
        if not {"delta", "centred"} <= groups.keys() or len(tasks) < 2 or any("." not in one for one in texts):
            return None
        base, mean = groups["delta"], groups["centred"]
        if not all((*base["norm"], *mean["norm"])):
            return None
        cosines = np.eye(len(tasks))
        for (first, second), value in zip(document["pairs"], base["cosine"]["value"], strict=True):
            cosines[first, second] = cosines[second, first] = value or 0.0
        return cls(
            tuple(tasks), _numbers(base["norm"]), cosines, _numbers(base["interference"]["value"]),
            np.array([float(one) for one in settings["ratios"]]), _numbers(base["energy"]), _numbers(mean["norm"]),
            _numbers(mean["energy"]), float(settings["rank"]),
        )  # fmt: skip

    def energy(self, share: float, *, apart: bool = False) -> Floats:
        """The energy [T] that a share of the full rank keeps, between the shares that were measured."""
        order = np.argsort(self.shares)
        places = np.concatenate([[0.0], self.shares[order], [1.0]])
        rows = (self.energies_apart if apart else self.energies)[:, order]
        return np.array([np.interp(share, places, [0.0, *row, 1.0]) for row in rows])


@dataclass(frozen=True, slots=True)
class Reach:
    """A merge as each task sees it, [T] each: see above."""

    signal: Floats
    load: Floats
    spread: Floats


def _numbers(values: Any) -> Floats:
    """Numbers of a document; what it does not have is 0."""
    return np.nan_to_num(np.array(values, dtype=np.float64))


def reach(ground: Ground, merge: Merge) -> Reach:
    """How a merge looks from each task.

    A sum of task vectors with one weight is exact but for the spaces' sizes. About the average, truncated differences
    of energy E add up to about E (1 - E) of their squares, and E (1 - E)² in each other's leading spaces, for at full
    rank they cancel. TSV-M's parts are taken as orthogonal: they load a task no more than the average does.
    """
    count = len(ground.tasks)
    average = _summed(ground, 1 / count, 1.0)
    if merge.method == "average" or (merge.method == "cart" and count == 2):
        return average
    weight = 1.0 if merge.coefficient is None else merge.coefficient
    if merge.method == "task_arithmetic":
        return _summed(ground, weight, 1.0)
    if merge.method == "truncated_task_arithmetic":
        return _summed(ground, weight, merge.rank or 1.0)
    squares = np.square(ground.norms)
    if merge.method == "tsv_m":
        energy = ground.energy(1 / count)
        return Reach(energy, average.load, _others(energy * squares) / squares)
    if merge.method != "cart":
        raise ValueError(f"there is no forecast of {merge.method}")
    energy = ground.energy(merge.rank or 1.0, apart=True)
    parts = energy * (1 - energy) * np.square(ground.apart)
    leading = ground.energy(ground.rank) * squares
    load = weight**2 * (ground.interference.T @ (parts * (1 - energy))) / leading
    spread = weight**2 * _others(parts) / squares
    return Reach(average.signal + weight * parts / squares, average.load + load, average.spread + spread)


def _summed(ground: Ground, weight: float, share: float) -> Reach:
    """Task vectors, truncated to a share of the full rank, times one weight."""
    squares, energy = np.square(ground.norms), ground.energy(share)
    leading = ground.energy(min(share, ground.rank)) * squares
    beside = ground.cosines * ground.norms[:, None] / ground.norms  # ⟨τ_s, τ_t⟩ / ‖τ_t‖², s down
    load = weight**2 * (ground.interference.T @ leading) / (ground.energy(ground.rank) * squares)
    return Reach(weight * (energy @ beside), load, weight**2 * _others(energy * squares) / squares)


def _others(values: Floats) -> Floats:
    """By task the sum over all others."""
    return np.asarray(values.sum() - values)


def kept(ground: Ground, merge: Merge, numbers: Numbers = NUMBERS) -> Floats:
    """The forecast [T]: 1 is the expert, 0 the base, below 0 worse than that."""
    seen = reach(ground, merge)
    found: Floats = numbers.signal * np.sqrt(np.maximum(seen.signal, 0))
    found -= numbers.load * seen.load + numbers.spread * seen.spread
    return found


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a merge keeps of each task [T]."""

    merge: Merge
    kept: Floats

    @property
    def mean(self) -> float:
        return float(self.kept.mean())


def ranked(ground: Ground, merges: Sequence[Merge]) -> list[Forecast]:
    """The forecasts of some merges, the best mean first; of equal ones those that come first."""
    return sorted((Forecast(merge, kept(ground, merge)) for merge in merges), key=lambda one: -round(one.mean, 6))


CANDIDATES: tuple[Merge, ...] = (
    Merge("average"),
    *(Merge("task_arithmetic", None, weight) for weight in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)),
    *(Merge("cart", rank, weight) for rank in (0.04, 0.08, 0.16, 0.32) for weight in (1.0, 1.5, 2.0)),
    Merge("tsv_m"),
)
"""Merges among which a recommendation chooses."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How far the forecast was from what was measured of one suite's subsets: Spearman's correlation of the means of
    merges, and among the merges of one subset, the mean error in scores, each (value, low, high) with a 95% interval
    over resampled subsets; `always` is the error of the same share for all."""

    suite: str
    subsets: int
    merges: int
    correlation: tuple[float, float, float]
    choice: tuple[float, float, float]
    error: tuple[float, float, float]
    always: float


TRIALS = (
    Trial("tiny-clip-8", 9, 54, (0.76, 0.55, 0.87), (0.57, 0.50, 0.64), (0.143, 0.129, 0.155), 0.118),
    Trial("small-texts", 11, 66, (0.63, 0.39, 0.76), (0.21, -0.03, 0.49), (0.032, 0.023, 0.043), 0.039),
)
"""Suites that had no part in form or numbers, each measured once (`benchmarks/forecast.py test`)."""
