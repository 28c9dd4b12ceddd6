"""95% intervals: Wilson's for proportions, Newcombe's for paired ones, the percentile bootstrap for everything else."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Bits = NDArray[np.bool_]
Floats = NDArray[np.float64]
Numbers = NDArray[np.integer] | NDArray[np.float64]
Draws = NDArray[np.integer]
"""[B, G]: how often each of G groups of equal items stands in each of B resamples."""

Z = 1.959963984540054  # the 97.5% point of the normal distribution
RESAMPLES = 1000
TAILS = (2.5, 97.5)
BLOCK = 1 << 18
"""Weights that are drawn at once: resamples of one block stay in the cache."""
FEW = 8
"""With this many items a group, or more, counts are drawn group by group instead of item by item."""


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion (1927), without continuity correction; the whole range for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return low, high


def paired(first: Bits, second: Bits) -> tuple[float, float, float]:
    """The difference of two proportions over the same items, first - second: (value, low, high).

    `first` and `second` hold one bool an item [n]. Newcombe's square-and-add interval with Wilson's limits and the
    continuity-corrected correlation (Statistics in Medicine 17, 1998, method 10). Without items: (0, -1, 1).
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} items are no pairs")
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    return newcombe(both, int((first & ~second).sum()), int((~first & second).sum()), neither)


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float, float]:
    """`paired` from the four counts of the two-by-two table."""
    n = both + only_first + only_second + neither
    if n == 0:
        return 0.0, -1.0, 1.0
    first, second = both + only_first, both + only_second
    (low_1, high_1), (low_2, high_2) = wilson(first, n), wilson(second, n)
    p, q = first / n, second / n
    link = _correlation(both, only_first, only_second, neither)
    value = (only_first - only_second) / n
    below = _square_and_add(p - low_1, high_2 - q, link)
    above = _square_and_add(high_1 - p, q - low_2, link)
    return value, max(value - below, -1.0), min(value + above, 1.0)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's estimate of the correlation of the two proportions, half an item per n nearer to zero if positive."""
    n = both + only_first + only_second + neither
    margins = [both + only_first, only_second + neither, both + only_second, only_first + neither]
    if not all(margins):
        return 0.0
    product = both * neither - only_first * only_second
    corrected = max(product - n / 2, 0.0) if product > 0 else float(product)
    return corrected / math.sqrt(math.prod(margins))


def _square_and_add(first: float, second: float, link: float) -> float:
    return math.sqrt(max(first * first - 2 * link * first * second + second * second, 0.0))


def mean_interval(values: Floats, lows: Floats, highs: Floats) -> Interval:
    """The interval of a plain mean of independent estimates, from their own by squaring and adding (Zou and Donner)."""
    mean = float(values.mean())
    below, above = float(np.hypot.reduce(values - lows)), float(np.hypot.reduce(highs - values))
    return mean - below / len(values), mean + above / len(values)


def bootstrap(estimate: Callable[[Draws], Floats], counts: NDArray[np.int64], seed: int) -> Interval:
    """The 2.5% and 97.5% points of an estimate over resamples of n items, drawn with replacement.

    `counts` [G] says how many of the n items are equal to each other in each of G groups, so that a resample is a
    draw of counts; `estimate` turns weights [B, G] into values [B]. The same seed gives the same interval.
    """
    values = np.concatenate([estimate(weights) for weights in _resamples(counts, seed)])
    low, high = np.percentile(values, TAILS) + 0.0  # -0.0 becomes 0.0
    return float(low), float(high)


def _resamples(counts: NDArray[np.int64], seed: int) -> Iterator[Draws]:
    """RESAMPLES rows of counts in blocks: multinomial where groups are few, item by item where they are many."""
    rng = np.random.default_rng(seed)
    n, groups = int(counts.sum()), len(counts)
    owner = np.repeat(np.arange(groups), counts)
    size = max(1, BLOCK // n)
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        if n >= FEW * groups:
            yield rng.multinomial(n, counts / n, size=rows)
            continue
        drawn = rng.integers(0, n, size=(rows, n))
        drawn = drawn if groups == n else owner[drawn]
        drawn = drawn + (np.arange(rows) * groups)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)


def group_sums(values: Numbers, order: NDArray[np.intp], starts: NDArray[np.intp]) -> Numbers:
    """Sums of columns [B, G] that belong together: `order` puts them side by side, `starts` is where a set begins."""
    return np.add.reduceat(values[:, order], starts, axis=1)


def grouping(keys: Numbers) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(order, starts) that `group_sums` takes, for sets of equal keys [G]; sets come in the order of their key."""
    order = np.argsort(keys, kind="stable")
    new = keys[order][1:] != keys[order][:-1]
    return order, np.flatnonzero(np.concatenate([[True], new]))
