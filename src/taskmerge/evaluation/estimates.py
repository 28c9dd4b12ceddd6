"""Metrics as estimates over weighted items: once with every weight 1 for the value, then over resamples.

Each function takes the rows of `itemwise` and gives the groups of items that count alike, how many there are of each,
and the estimate itself: weights [B, G] -> values [B]. No estimate is ever NaN: what is undefined is 0.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from taskmerge.evaluation.intervals import Draws, Floats, Numbers, group_sums, grouping

Rows = NDArray[np.float64]
"""[N, k]: what each of N items contributes; `itemwise` says what k stands for."""
Estimate = Callable[[Draws], Floats]
Grouped = tuple[NDArray[np.int64], Estimate]

BINS = 15  # of confidence (Guo et al., 2017)
ROUNDING = 1e-12
"""A variance below this share of the second moment is none: the resample holds one value only."""


def accuracy(rows: Rows) -> Grouped:
    """Share of items whose prediction is the label."""
    right = rows[:, 0] == rows[:, 1]
    values, counts = np.unique(right, return_counts=True)
    return counts, lambda weights: _ratio((weights * values).sum(1), weights.sum(1))


def mean_per_class(rows: Rows) -> Grouped:
    """Recall of each class, averaged over the classes that have items."""
    pairs, counts = np.unique(np.stack([rows[:, 0], rows[:, 0] == rows[:, 1]], axis=1), axis=0, return_counts=True)
    order, starts = grouping(pairs[:, 0])
    right = pairs[:, 1].astype(np.int64)

    def estimate(weights: Draws) -> Floats:
        items, hits = group_sums(weights, order, starts), group_sums(weights * right, order, starts)
        return _ratio(_ratio(hits, items).sum(1), (items > 0).sum(1))

    return counts, estimate


def matthews(rows: Rows) -> Grouped:
    """Matthews' correlation, for any number of classes (Gorodkin, 2004); 0 where only one class is seen or said."""
    pairs, counts = np.unique(rows[:, :2].astype(np.int64), axis=0, return_counts=True)
    classes = int(pairs.max()) + 1
    right = pairs[:, 0] == pairs[:, 1]
    sides = [(*grouping(side), np.unique(side)) for side in pairs.T]

    def estimate(weights: Draws) -> Floats:
        n = weights.sum(1).astype(np.float64)
        margins = np.zeros((2, len(weights), classes))  # items labelled, and predicted, as each class
        for margin, (order, starts, names) in zip(margins, sides, strict=True):
            margin[:, names] = group_sums(weights, order, starts)
        true, predicted = margins
        above = (weights * right).sum(1) * n - (true * predicted).sum(1)
        below = np.sqrt((n * n - (true * true).sum(1)) * (n * n - (predicted * predicted).sum(1)))
        return _ratio(above, below)

    return counts, estimate


def f1(rows: Rows) -> Grouped:
    """Harmonic mean of precision and recall of the second of two classes; 0 where it is neither seen nor said."""
    pairs, counts = np.unique(rows[:, :2].astype(np.int64), axis=0, return_counts=True)
    hits, either = pairs.all(1), pairs.sum(1)

    def estimate(weights: Draws) -> Floats:
        return _ratio(2 * (weights * hits).sum(1), (weights * either).sum(1))

    return counts, estimate


def calibration_error(rows: Rows) -> Grouped:
    """|confidence - accuracy| in 15 equal bins (lower edge excluded), weighted by the items in each.

    Biased upwards in few items, and so are its resamples: the interval may lie above the value.
    """
    order, starts = grouping(_confidence_bins(rows))
    gaps = (rows[:, 2] - (rows[:, 0] == rows[:, 1]))[order]

    def estimate(weights: Draws) -> Floats:
        return _ratio(np.abs(np.add.reduceat(weights * gaps, starts, axis=1)).sum(1), weights.sum(1))

    return _each(rows), estimate


def reliability(rows: Rows) -> tuple[dict[str, float], ...]:
    """What `calibration_error` is made of: of each of its bins that has items its place, how many they are, how many of
    them are right, and their mean confidence."""
    bins, right = _confidence_bins(rows), rows[:, 0] == rows[:, 1]
    return tuple(
        {
            "bin": int(place), "n": int(inside.sum()), "right": int(right[inside].sum()),
            "confidence": float(rows[inside, 2].mean()),
        }
        for place in np.unique(bins) for inside in [bins == place]
    )  # fmt: skip


def _confidence_bins(rows: Rows) -> NDArray[np.int64]:
    """The bin of each item's confidence, its lower edge excluded."""
    return np.clip(np.ceil(rows[:, 2] * BINS).astype(np.int64) - 1, 0, BINS - 1)


def pearson(rows: Rows) -> Grouped:
    """Pearson's correlation of output and label; 0 where either is constant."""
    x, y = (_standardised(column) for column in rows.T)
    moments = np.stack([x, y, x * x, y * y, x * y])

    def estimate(weights: Draws) -> Floats:
        n = weights.sum(1)
        sx, sy, sxx, syy, sxy = (np.einsum("bg,g->b", weights, moment) for moment in moments)
        spread = [_or_zero(square - total * total / n, square) for total, square in ((sx, sxx), (sy, syy))]
        return np.clip(_ratio(sxy - sx * sy / n, np.sqrt(spread[0] * spread[1])), -1, 1)

    return _each(rows), estimate


def spearman(rows: Rows) -> Grouped:
    """Spearman's rank correlation; equal values share their mean rank, and it is 0 where either is constant."""
    by_output = rows[np.argsort(rows[:, 0], kind="stable")]
    order = np.argsort(by_output[:, 1], kind="stable")
    columns = by_output[:, 0], by_output[order, 1]
    starts, sets = zip(*(_runs(column) for column in columns), strict=True)
    back = np.argsort(order)

    def estimate(weights: Draws) -> Floats:
        items = np.ascontiguousarray(weights.T, dtype=np.int32)  # [G, B]: whole rows move when items are put in order
        n = weights.sum(1).astype(np.float64)
        x, ties_x = _ranks(items, starts[0], sets[0])
        y, ties_y = _ranks(items[order], starts[1], sets[1])
        cubes = n**3 - n
        below = np.sqrt((cubes - ties_x) * (cubes - ties_y)) / 3
        return np.clip(_ratio(np.einsum("gb,gb,gb->b", items, x, y[back], dtype=np.float64), below), -1, 1)

    return _each(rows), estimate


def mean_correlation(rows: Rows) -> Grouped:
    """The mean of Pearson's and Spearman's, as GLUE scores STS-B."""
    by_output = rows[np.argsort(rows[:, 0], kind="stable")]  # the order of `spearman`, so that weights are the same
    counts, first = pearson(by_output)
    _, second = spearman(rows)
    return counts, lambda weights: (first(weights) + second(weights)) / 2


def miou(rows: Rows) -> Grouped:
    """Intersection over union of each class over all pixels, averaged over the classes labelled or predicted."""
    right, predicted, true = np.split(rows, 3, axis=1)

    def estimate(weights: Draws) -> Floats:
        both, union = (np.einsum("bg,gc->bc", weights, areas) for areas in (right, predicted + true - right))
        return _ratio(_ratio(both, union).sum(1), (union > 0).sum(1))

    return _each(rows), estimate


def pixel_accuracy(rows: Rows) -> Grouped:
    """Share of labelled pixels whose prediction is the label; resampled by whole images, whose pixels go together."""
    right, _, true = np.split(rows, 3, axis=1)
    return pooled(np.stack([right.sum(1), true.sum(1)], axis=1), 0)


def pooled(rows: Rows, column: int) -> Grouped:
    """A sum over all pixels of all items, over their number (the last column)."""

    def estimate(weights: Draws) -> Floats:
        return _ratio(*(np.einsum("bg,g->b", weights, rows[:, place]) for place in (column, -1)))

    return _each(rows), estimate


def _runs(column: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each run of equal values of a sorted column begins, and the run that each item is in."""
    new = np.concatenate([[True], column[1:] != column[:-1]])
    return np.flatnonzero(new), np.cumsum(new) - 1


def _ranks(
    items: NDArray[np.int32], starts: NDArray[np.intp], which: NDArray[np.intp]
) -> tuple[NDArray[np.int32], Floats]:
    """Twice the mean ranks of sorted items [G, B], less their mean, and what ties take from the cube of n [B]."""
    ties = len(starts) < len(items)
    tied = np.add.reduceat(items, starts, axis=0, dtype=np.int32) if ties else items
    ends = np.cumsum(tied, axis=0, dtype=np.int32)
    ranks = 2 * ends - tied - ends[-1:]
    wide = tied.astype(np.float64)
    return (ranks[which] if ties else ranks), np.einsum("gb,gb,gb->b", wide, wide, wide) - ends[-1]


def _each(rows: Rows) -> NDArray[np.int64]:
    return np.ones(len(rows), dtype=np.int64)


def _standardised(column: Floats) -> Floats:
    """Values with mean 0 and deviation 1; exact zeros where they are constant."""
    centred = column - column[0]
    if not centred.any():
        return np.zeros_like(column)
    centred = centred - centred.mean()
    scaled: Floats = centred / np.abs(centred).max()
    return scaled


def _or_zero(variance: Floats, square: Floats) -> Floats:
    return np.where(variance > ROUNDING * square, variance, 0.0)


def _ratio(above: Numbers, below: Numbers) -> Floats:
    """Their ratio, 0 where the denominator is 0."""
    ratio: Floats = np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)
    return ratio
