"""The power law of a spectrum's tail: WeightWatcher's alpha, by the method of Clauset, Shalizi and Newman."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FEWEST = 10
"""Eigenvalues below which there is no tail to speak of."""
AT_ONCE = 1 << 20
"""Numbers of the table of distances that are held at once."""


class Tail(NamedTuple):
    """p(λ) ∝ λ^-exponent of the `length` largest eigenvalues; `distance` is Kolmogorov's and Smirnov's."""

    exponent: float
    length: int
    distance: float


NONE = Tail(math.nan, 0, math.nan)


def power_law(values: Tensor) -> Tail:
    """The law that the largest squares of singular values (positive, descending) follow best.

    For every start x the likeliest exponent is 1 + n / Σ log(λ_i / x) over the n eigenvalues λ_i >= x; the start is
    that of the least distance between this law's distribution and theirs (Clauset et al. 2009, arXiv:0706.1062,
    eqs. 3.1 and 3.9), as `powerlaw.Fit(λ)` and WeightWatcher's alpha (Martin and Mahoney 2021) have it. Squares of
    task vectors are small, so nothing is dropped below an absolute size. `NONE` for fewer than 10 values.
    """
    logs = 2 * np.log(values.double().numpy()[::-1])  # ascending: log λ
    if len(logs) < FEWEST or logs[0] == logs[-1]:
        return NONE
    starts = np.unique(logs, return_index=True)[1][:-1]
    steps = np.diff(logs) * np.arange(len(logs) - 1, 0, -1)
    # Σ log(λ_i / x) from sums of what is not negative: like values leave it positive
    over = np.cumsum(steps[::-1])[::-1]
    counts = len(logs) - starts
    exponents = 1 + counts / over[starts]
    distances = np.concatenate([
        _distances(logs, starts[rows], exponents[rows]) for rows in _rows(len(starts), len(logs))
    ])  # fmt: skip
    best = int(np.argmin(distances))
    return Tail(float(exponents[best]), int(counts[best]), float(distances[best]))


def _rows(starts: int, values: int) -> list[slice]:
    step = max(1, AT_ONCE // values)
    return [slice(first, first + step) for first in range(0, starts, step)]


def _distances(
    logs: NDArray[np.float64], starts: NDArray[np.intp], exponents: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For some starts the largest gap between the law's distribution function and the share of values below each.

    Of values that occur several times the share below the first counts.
    """
    first = int(starts[0])
    logs = logs[first:]
    below = np.searchsorted(logs, logs, side="left").astype(np.float64)
    offsets = (starts - first)[:, None]
    over = np.maximum(logs - logs[starts - first][:, None], 0)
    law = -np.expm1(-(exponents[:, None] - 1) * over)
    share = (below - offsets) / (len(logs) - offsets)
    gaps = np.abs(law - share)
    gaps[np.arange(len(logs)) < offsets] = 0
    found: NDArray[np.float64] = gaps.max(axis=1)
    return found
