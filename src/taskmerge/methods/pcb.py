"""PCB: parameter competition balancing within and between tasks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import GUARD
from taskmerge.numerics.selection import OrderStatistic, Scan, largest, slices
from taskmerge.types import Merged, Stack, Weights

CLIPPED = 1e-4
SMALLEST_DIVISOR = 1e-12
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Balance:
    """What PCB knows of a whole model: per task the range that magnitudes are clipped to, and that of its scores."""

    magnitudes: tuple[Range, ...]
    scores: tuple[Range, ...]


def measure(scan: Scan, *, ratio: float) -> Balance:
    """The exact order statistics of the magnitudes, then of the scores that follow from them; four passes."""
    sizes = _ranges(largest(scan, lambda count: (_rank(count, CLIPPED), _rank(count, 1 - CLIPPED, below=1))))
    competing = largest(
        scan, lambda count: (_rank(count, 1 - ratio), 1), lambda piece: scores(piece, sizes), signed=True
    )
    return Balance(sizes, _ranges(competing))


def scores(stack: Stack, magnitudes: Sequence[Range]) -> Iterator[Tensor]:
    """Per task exp(T (m² - 1)) tanh(τ_t Σ_s τ_s), m the clipped magnitude stretched to [0, 1]; fresh tensors.

    The authors' exp(T m²) times exp(-T): the stretching that follows undoes the factor, and nothing overflows.
    """
    total = torch.zeros_like(stack[0])
    for row in stack:
        total.add_(row)
    for row, size in zip(stack, magnitudes, strict=True):
        within = _stretched(row.abs(), size).square_().sub_(1).mul_(len(stack)).exp_()
        yield within.mul_((row * total).tanh_())


@method(
    space="delta",
    reads="elements",
    title="PCB: parameter competition balancing",
    formula="θ = θ₀ + λ Σ w_t β_t τ̃_t / Σ β_t, β = minmax(max(s, q)), s_t = exp(T minmax(|τ̃_t|)²) tanh(τ_t Σ_s τ_s)",
    paper="arXiv:2410.02396",
    statistic=measure,
    notes=(
        "τ̃: magnitudes clipped to their 0.01% and 99.99% quantiles of the whole model, q: the 1 - ratio quantile of s",
        "the authors' scripts use ratio 0.05, and search one coefficient a task in 0.8 to 1.3 on validation data",
    ),
    laws=Laws(homogeneous=False, absent_at_zero=False),  # tanh measures against 1; all compete, whatever their weight
    work=Work(sweeps=80, passes=4),
)
def pcb(
    stack: Stack,
    weights: Weights,
    statistic: Balance | None = None,
    *,
    ratio: Annotated[float, Option("share of a task's entries that compete, the best scores", low=0, high=1)] = 0.1,
    coefficient: Annotated[float, Option("scales the result")] = 1.2,
) -> Merged:
    """Task vectors weighted entry by entry by how well they stand within their task and agree with the others.

    λ Σ w_t τ̃_t β_t / Σ β_t (Du et al., order statistics as in the authors' code). Where a task's scores
    above the quantile are all equal, β is 1 on them if they are positive and 0 elsewhere (0/0 in the authors' code).
    Weights multiply the clipped task vectors, after the competition; the divisor has no weights.
    """
    if not stack[0].numel():
        return torch.zeros_like(stack[0])
    balance = statistic or measure(slices(stack), ratio=ratio)
    total, divisor = torch.zeros_like(stack[0]), torch.zeros_like(stack[0])
    competing = zip(scores(stack, balance.magnitudes), balance.scores, strict=True)
    for row, weight, (low, high), (score, bounds) in zip(
        stack, weights.tolist(), balance.magnitudes, competing, strict=True
    ):
        share = _share(score, bounds)
        divisor.add_(share)
        clipped = row.abs().clamp_(low, high).mul_(row.sign())
        total.add_(clipped.mul_(share), alpha=weight)
    return total.div_(divisor.clamp_(min=SMALLEST_DIVISOR)).mul_(coefficient)


def _share(score: Tensor, bounds: Range) -> Tensor:
    """β of one task, in place: 0 below the lower bound, 1 at the best score."""
    low, high = bounds
    if low == high > 0:
        return score.ge_(high)
    return _stretched(score, bounds)


def _stretched(values: Tensor, bounds: Range) -> Tensor:
    """Values clipped to a range that then becomes [0, 1], in place; 0 where the range is one point."""
    low, high = bounds
    return values.clamp_(low, high).sub_(low).div_(high - low if high > low else 1.0)


def _rank(count: int, share: float, below: int = 0) -> int:
    """The rank from above of the number at index floor(share count) - `below` of the numbers sorted upwards."""
    index = math.floor(share * count - below + GUARD)
    return count - min(max(index, 0), count - 1)


def _ranges(statistics: list[list[OrderStatistic]]) -> tuple[Range, ...]:
    """(lower, upper) of each row."""
    return tuple((low.value, high.value) for low, high in statistics)
