"""Model Breadcrumbs: leave out the outliers and the small change of every task vector."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import GUARD
from taskmerge.numerics.selection import largest, share_of, slices, sort_rows
from taskmerge.types import Stack


@method(
    space="delta",
    reads="tensor",
    title="Model Breadcrumbs",
    formula="τ̃_t = τ_t on the d·n largest of each row of n after its g·n largest, 0 elsewhere, then merged by --then",
    paper="arXiv:2312.06795",
    gives="task_vectors",
    notes=(
        "per row of the last dimension as the authors' code; mergekit works on whole tensors (`--scope tensor`)",
        "at least one entry is kept of a row, however short; the authors' code zeroes 3-wide kernels",
    ),
    aliases=("breadcrumbs_linear",),
    laws=Laws(zero_task={}),
    work=Work(sweeps=45),
)
def breadcrumbs(
    stack: Stack,
    *,
    drop_top: Annotated[float, Option("share of a row's entries dropped, the largest", low=0, high=1)] = 0.1,
    density: Annotated[float, Option("share of a row's entries kept, the largest of the rest", low=1e-6, high=1)] = 0.2,
    scope: Annotated[Literal["row", "tensor"], Option("what the shares are taken of")] = "row",
) -> Stack:
    """Task vectors without their largest and their small entries.

    A row of n keeps the floor(density n) largest magnitudes after its floor(drop_top n) largest are dropped
    (Davari and Belilovsky; counts as in the authors' code). Rows: the last dimension, a vector is one row; scope
    `tensor`: everything is one row. 0-D tensors are untouched. Ties: entries whose magnitude equals the largest or
    the smallest that is kept are all kept, so position decides nothing. Each row of `stack` is treated by itself.
    """
    if stack.dim() == 1 or not stack.numel():
        return stack.clone()
    width = stack.shape[-1] if scope == "row" else stack[0].numel()
    dropped = math.floor(drop_top * width + GUARD)
    if dropped == width:
        return torch.zeros_like(stack)
    kept = share_of(width - dropped, density * width / (width - dropped))
    result = torch.empty_like(stack)
    for row, out in zip(stack, result, strict=True):
        low, high = _bounds(row, dropped + 1, dropped + kept, scope)
        magnitude = row.abs()
        torch.mul(row, magnitude.le(high), out=out).mul_(magnitude.ge_(low))
    return result


def _bounds(row: Tensor, first: int, last: int, scope: str) -> tuple[Tensor | float, Tensor | float]:
    """The magnitudes at the ranks `last` and `first` (1 is the largest) of every row, or of the tensor."""
    if scope == "tensor":
        highest, lowest = largest(slices(row[None]), lambda count: (first, last))[0]
        return lowest.value, highest.value
    ordered = sort_rows(row.abs())
    return ordered[..., -last, None], ordered[..., -first, None]
