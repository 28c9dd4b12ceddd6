"""TSV-M: the tasks' leading singular vectors side by side, made orthonormal."""

from typing import Annotated, NamedTuple

import torch

from taskmerge.methods.average import average
from taskmerge.methods.contract import Work, method
from taskmerge.methods.options import Option, Options
from taskmerge.numerics import durations
from taskmerge.numerics.polar import RULE, notes, polar
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix


class Whitened(NamedTuple):
    """A merged task vector [m, n] before it is scaled, and notes on its directions."""

    merged: Matrix
    notes: tuple[str, ...]


def whitened(matrices: TaskMatrices) -> Whitened:
    """polar([U_1 … U_T]) diag(s_1 … s_T) polar([V_1 … V_T])ᵀ of each task's share of the components."""
    factors = matrices.top(max(1, matrices.full // len(matrices)))
    values = torch.cat([s for _, s, _ in factors])
    left = polar(torch.cat([u.mT for u, _, _ in factors]))  # rows lie together in memory
    right = polar(torch.cat([vt for _, _, vt in factors]))
    return Whitened(left.factor.mul_(values[:, None]).mT @ right.factor, notes(left, right))


def takes(m: int, n: int, tasks: int, options: Options) -> float:
    """Seconds: every task's share of the components, and two polar factors of all of them."""
    k = max(1, min(m, n) // tasks)
    both = durations.polar(tasks * k, m) + durations.polar(tasks * k, n)
    return tasks * durations.leading(m, n, k) + both + durations.product(m, tasks * k, n)


@method(
    space="delta",
    reads="matrix",
    title="TSV-Merge: task singular vectors",
    formula="θ = θ₀ + α polar([U_1 … U_T]) diag(s_1 … s_T) polar([V_1 … V_T])ᵀ on matrices, θ̄ elsewhere",
    paper="arXiv:2412.00081",
    elsewhere=average,
    shared=whitened,
    notes=(
        "the authors' code treats every 2-D tensor as a matrix: --also projection,embedding",
        "the authors searched the coefficient on validation data, 0.1 to 3.0",
        RULE,
    ),
    aliases=("tsv",),
    work=Work(matrix=takes),
)
def tsv_m(
    matrices: TaskMatrices,
    shared: Whitened | None = None,
    *,
    coefficient: Annotated[float, Option("scales the merged task vector")] = 1.0,
) -> Matrix:
    """The base plus the tasks' leading components, their singular vectors made orthonormal across tasks.

    U_t, s_t, V_t: the first k_t = min(max(1, floor(r / T)), numerical rank of τ_t) components of task t, T counting
    every expert; a zero τ_t has none and so takes no part. The polar factors are the nearest matrices with
    orthonormal columns (Gargiulo et al., TSV-Merge). Returns the merged task vector.
    """
    return coefficient * (shared or whitened(matrices)).merged
