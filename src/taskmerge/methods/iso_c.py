"""Iso-C: the sum of the task vectors with all its singular values made equal."""

from typing import Annotated, NamedTuple

import torch

from taskmerge.methods.average import average
from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics import durations
from taskmerge.numerics.powers import total
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix


class Flat(NamedTuple):
    """A flat spectrum before it is scaled: the sum of the singular values, the directions [m, n], and notes on them."""

    total: float
    directions: Matrix
    notes: tuple[str, ...] = ()


def summed(matrices: TaskMatrices) -> Matrix:
    """Στ_t, added up in task order."""
    result = torch.zeros_like(matrices.stack[0])
    for matrix in matrices.stack:
        result.add_(matrix)
    return result


def flattened(matrices: TaskMatrices) -> Flat:
    """Σs and U Vᵀ of Στ_t, over its numerical rank."""
    u, s, vt = TaskMatrices(summed(matrices)[None]).top(matrices.full)[0]
    return Flat(total(s), u @ vt)


@method(
    space="delta",
    reads="matrix",
    title="Iso-C: isotropic merging in the common subspace",
    formula="θ = θ₀ + α mean(s) U Vᵀ, U diag(s) Vᵀ = Σ_t τ_t on matrices, θ̄ elsewhere",
    paper="arXiv:2502.04959",
    elsewhere=average,
    shared=flattened,
    notes=(
        "the authors searched the coefficient on validation data, 0.1 to 3.0, and scale averaged tensors by it too; "
        "here the coefficient scales matrices only",
        "the authors' code treats every 2-D tensor as a matrix: --also projection,embedding",
    ),
    laws=Laws(zero_task={}),
    work=Work(matrix=lambda m, n, tasks, options: durations.truncated(m, n, 1, None)),
)
def iso_c(
    matrices: TaskMatrices,
    shared: Flat | None = None,
    *,
    coefficient: Annotated[float, Option("scales the merged task vector")] = 1.0,
) -> Matrix:
    """The base plus the summed task vectors with a flat spectrum.

    α mean(s) U Vᵀ (Marczak et al., Iso-C), U and V over the numerical rank of Στ_t: beyond it they are not unique.
    The mean is over all r = min(m, n) singular values, zeros too. Returns the merged task vector.
    """
    flat = shared or flattened(matrices)
    return (coefficient * flat.total / matrices.full) * flat.directions
