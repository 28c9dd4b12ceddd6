"""Sign election (TIES): trimmed task vectors, their sums by sign, and which sign wins each entry."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from taskmerge.types import Stack, Weights


def trimmed(stack: Stack, thresholds: Sequence[float], weights: Weights) -> Iterator[Tensor]:
    """w_t τ_t where |τ_t| reaches the task's threshold, 0 elsewhere; one fresh tensor a task."""
    for row, threshold, weight in zip(stack, thresholds, weights.tolist(), strict=True):
        yield _reaching(row, threshold).mul_(weight)


def split(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ of the positive entries and Σ of the negative entries over at least one row; the rows are used up.

    x, y, -x, -y give exactly opposite sums whatever their order, which a running sum of both signs would not.
    """
    positive: Tensor | None = None
    negative: Tensor | None = None
    for row in rows:
        up = row.clamp(min=0)
        down = row.clamp_(max=0)
        positive = up if positive is None else positive.add_(up)
        negative = down if negative is None else negative.add_(down)
    if positive is None or negative is None:
        raise ValueError("no rows to elect a sign from")
    return positive, negative


def elect(positive: Tensor, negative: Tensor, cancelled_up: bool) -> Tensor:
    """Where the sum is positive: bool; `cancelled_up` says what a sum that cancels exactly counts as."""
    total = positive + negative
    return total >= 0 if cancelled_up else total > 0


def agreeing(rows: Iterable[Tensor], up: Tensor, dtype: torch.dtype) -> Tensor:
    """How many non-zero entries have the elected sign, as numbers of the rows' dtype; the rows are used up."""
    direction = up.to(dtype).mul_(2).sub_(1)
    count = torch.zeros_like(direction)
    for row in rows:
        count.add_(row.mul_(direction).sign_().clamp_(min=0))
    return count


def balance(positive: Tensor, negative: Tensor) -> int:
    """How many entries elect plus, less how many elect minus; cancelling sums and untouched entries elect nothing."""
    return int((positive + negative).sign_().sum(dtype=torch.float64))


def _reaching(row: Tensor, threshold: float) -> Tensor:
    """x where |x| >= threshold, else 0."""
    below = torch.nextafter(torch.tensor(threshold, dtype=row.dtype), torch.tensor(0.0, dtype=row.dtype))
    return hardshrink(row, float(below))  # keeps |x| > below, in one vectorised operation
