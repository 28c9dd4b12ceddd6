"""LiNeS: task arithmetic whose coefficient grows with depth; the factor also scales other methods (`--lines`)."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, method
from taskmerge.methods.kernel import Position
from taskmerge.methods.options import Option
from taskmerge.types import Merged, Stack, Weights


def even(tasks: int) -> float:
    """1 / T: with it the first block is the average."""
    return 1 / tasks


def depth_factor(position: Position | None, tasks: int, alpha: float | None = None, beta: float = 0.5) -> float:
    """alpha + beta l / (L - 1) in block l of L, alpha outside blocks and where there is one block (Wang et al.).

    alpha is 1 / tasks where it is None.
    """
    first = even(tasks) if alpha is None else alpha
    if position is None:
        return first
    block, blocks = position
    return first + beta * block / (blocks - 1) if blocks > 1 else first


@method(
    space="delta",
    reads="elements",
    title="LiNeS: layer-increasing network scaling",
    formula="θ = θ₀ + (α + β l / (L - 1)) Σ_t w_t τ_t in block l of L, θ₀ + α Σ_t w_t τ_t outside",
    paper="arXiv:2410.17146",
    notes=(
        "the authors searched beta on validation data; alpha 1/T makes the first block the average",
        "`--lines` puts the same factor on any other method of task vectors",
    ),
    factor=depth_factor,
    laws=Laws(equal_experts={"beta": 0.0}, zero_task={"alpha": 0.3}),
)
def lines(
    stack: Stack,
    weights: Weights,
    position: Position | None = None,
    *,
    alpha: Annotated[
        float | None,
        Option(
            "coefficient of the first block and outside blocks", auto="1/T", usual=lambda options, tasks: even(tasks)
        ),
    ] = None,
    beta: Annotated[float, Option("added to it from the first to the last block")] = 0.5,
) -> Merged:
    """The sum of task vectors, scaled linearly with depth.

    Task arithmetic with coefficient 1 times `depth_factor` (Wang et al.).
    """
    scale = depth_factor(position, len(stack), alpha, beta)
    total = torch.zeros_like(stack[0])
    for row, weight in zip(stack, weights.tolist(), strict=True):
        total.add_(row, alpha=scale * weight)
    return total
