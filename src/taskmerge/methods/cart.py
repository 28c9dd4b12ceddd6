"""CART: centred task vectors, truncated, added to the average."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics import durations
from taskmerge.numerics.centre import shares
from taskmerge.numerics.powers import norm
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix, Weights

ROUNDING = 1e-5


def cancel(matrices: TaskMatrices, weights: Weights) -> bool:
    """Whether two task matrices cancel, w_1 τ̄_1 = -w_2 τ̄_2: then so do their truncations, of whatever rank.

    Two experts about their own mean always do; vectors that were centred about the mean of more experts do not.
    """
    if len(matrices) != 2:
        return False
    (first, second), (left, right) = matrices.stack, shares(weights)
    return norm(left * first + right * second) <= ROUNDING * norm(left * first)


@method(
    space="centred",
    reads="matrix",
    title="CART: centred arithmetic with rank-reduced task vectors",
    formula="θ = θ̄ + λ Σ_t SVD_k(θ_t - θ̄) on matrices, θ̄ elsewhere",
    paper="arXiv:2412.12153",
    notes=(
        "the authors' tables used searched ranks and coefficients (8 tasks: 0.12 with 2.0); "
        "the best coefficient is often above 1",
        "with two experts it is the average",
    ),
    note_for={2: "CART of two experts with equal weights is their average: the centred task vectors cancel"},
    laws=Laws(equal_experts={}),
    work=Work(matrix=lambda m, n, tasks, options: durations.truncated(m, n, tasks, options["rank"])),
)
def cart(
    matrices: TaskMatrices,
    weights: Weights,
    *,
    rank: Annotated[Rank, Option("components kept of every centred task matrix")] = Rank("ratio", 0.08),
    coefficient: Annotated[float, Option("scales the sum of truncated centred task vectors")] = 1.0,
) -> Matrix:
    """The average plus the truncated differences from it.

    λ Σ_t SVD_k(τ̄_t), τ̄_t = θ_t - θ̄ (Choi et al., eq. 5); with weights λ T Σ w_t SVD_k(θ_t - θ̄_w), Σ w_t = 1.
    Never reads the base. At full rank the sum is zero whatever λ.
    """
    if cancel(matrices, weights):
        return torch.zeros_like(matrices.stack[0])
    scaled = [coefficient * len(weights) * share for share in shares(weights)]
    return matrices.truncated_sum(rank, scaled)
