"""Sign election (TIES): trimmed task vectors, their sums by sign, and which sign wins each entry."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from taskmerge.types import Stack, Weights


def trimmed(stack: Stack, thresholds: Sequence[float], weights: Weights) -> Iterator[Tensor]:
    """w_t τ_t where |τ_t| reaches the task's threshold, 0 elsewhere; one fresh tensor a task."""
    for row, threshold, weight in zip(stack, thresholds, weights.tolist(), strict=True):
        kept = _reaching(row, threshold)
        yield kept if weight == 1 else kept.mul_(weight)


class Split(NamedTuple):
    """Σ of the positive and Σ of the negative entries, over tasks."""

    positive: Tensor
    negative: Tensor


class Counts(NamedTuple):
    """The positive entries less the negative ones, and both together, over tasks; as numbers of the rows' dtype."""

    net: Tensor
    touched: Tensor


def split(rows: Iterable[Tensor]) -> Split:
    """The sums by sign of at least one row; the rows are used up.

    x, y, -x, -y give exactly opposite sums whatever their order, which a running sum of both signs would not.
    """
    return _split(rows, lambda row: None)


def split_and_count(rows: Iterable[Tensor]) -> tuple[Split, Counts]:
    """The sums by sign of at least one row, and how many entries have which; the rows are used up."""
    counts: list[Tensor] = []

    def count(row: Tensor) -> None:
        signs = row.sign()
        if counts:
            counts[0].add_(signs)
            counts[1].add_(signs.abs_())
        else:
            counts.extend((signs, signs.abs()))

    return _split(rows, count), Counts(*counts)


def _split(rows: Iterable[Tensor], look: Callable[[Tensor], None]) -> Split:
    positive: Tensor | None = None
    negative: Tensor | None = None
    for row in rows:
        look(row)
        up = row.clamp(min=0)
        down = row.clamp_(max=0)
        positive = up if positive is None else positive.add_(up)
        negative = down if negative is None else negative.add_(down)
    if positive is None or negative is None:
        raise ValueError("no rows to elect a sign from")
    return Split(positive, negative)


def elect(positive: Tensor, negative: Tensor, cancelled_up: bool) -> Tensor:
    """Where the sum is positive: bool; `cancelled_up` says what a sum that cancels exactly counts as."""
    total = positive + negative
    return total >= 0 if cancelled_up else total > 0


def agreeing(counts: Counts, up: Tensor) -> Tensor:
    """How many non-zero entries have the elected sign; the counts are used up."""
    direction = up.to(counts.net.dtype).mul_(2).sub_(1)
    return counts.touched.add_(counts.net.mul_(direction)).mul_(0.5)


def balance(positive: Tensor, negative: Tensor) -> int:
    """How many entries elect plus, less how many elect minus; cancelling sums and untouched entries elect nothing."""
    return int((positive + negative).sign_().sum(dtype=torch.float64))


def _reaching(row: Tensor, threshold: float) -> Tensor:
    """x where |x| >= threshold, else 0."""
    below = torch.nextafter(torch.tensor(threshold, dtype=row.dtype), torch.tensor(0.0, dtype=row.dtype))
    return hardshrink(row, float(below))  # keeps |x| > below, in one vectorised operation
