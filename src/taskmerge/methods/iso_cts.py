"""Iso-CTS: the common subspace of the summed task vectors, each task's own directions beside it, one flat spectrum."""

import math
from typing import Annotated

import torch
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.iso_c import Flat, summed
from taskmerge.methods.options import Option, Options
from taskmerge.numerics import durations
from taskmerge.numerics.polar import RULE, notes, polar
from taskmerge.numerics.powers import norm, total
from taskmerge.numerics.rank import GUARD
from taskmerge.numerics.spectral import Factors, TaskMatrices
from taskmerge.types import Matrix

LEAST = 1e-10  # share of ‖τ‖ that a projection in float64 may leave of what lies inside the subspace


def split(full: int, tasks: int, common_fraction: float) -> tuple[int, int]:
    """How many of `full` directions are common, and how many every task gets beside them.

    The share of a task is rounded (halves to even) and the common part takes what is left, as the authors do;
    all task shares together never exceed `full`.
    """
    wanted = math.floor(common_fraction * full + GUARD)
    each = min(round((full - wanted) / tasks), full // tasks)
    return full - tasks * each, each


def _above(factors: Factors, floor: float) -> Factors:
    """The components whose singular values exceed `floor`: a remainder of rounding has no direction."""
    kept = int((factors.s > floor).sum())
    return Factors(factors.u[:, :kept], factors.s[:kept], factors.vt[:kept])


def _noise(matrix: Tensor) -> float:
    """What the rounding of a matrix's entries, or of a projection, may look like as a singular value."""
    return max(torch.finfo(matrix.dtype).eps, LEAST) * norm(matrix)


def _outside(matrix: Tensor, basis: Tensor) -> Tensor:
    """τ - Q Qᵀ τ for orthonormal columns Q, in float64: from the left only, as the authors project."""
    wide = matrix.double()
    return (wide - basis @ (basis.mT @ wide)).to(matrix.dtype)


def flattened(matrices: TaskMatrices, common_fraction: float) -> Flat:
    """The sum of all singular values that are kept, and polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ."""
    count, each = split(matrices.full, len(matrices), common_fraction)
    noise = [_noise(matrix) for matrix in matrices.stack]
    common = _above(TaskMatrices(summed(matrices).double()[None]).top(count)[0], max(noise))
    own = TaskMatrices(torch.stack([_outside(matrix, common.u) for matrix in matrices.stack])).top(each)
    parts = [*map(_above, own, noise), Factors(*(part.to(matrices.stack) for part in common))]
    left = polar(torch.cat([part.u.mT for part in parts]))
    right = polar(torch.cat([part.vt for part in parts]))
    return Flat(sum(total(part.s) for part in parts), left.factor.mT @ right.factor, notes(left, right))


def takes(m: int, n: int, tasks: int, options: Options) -> float:
    """Seconds: the common components in float64, every task's own beside them, and two polar factors of all of them."""
    r = min(m, n)
    count, each = split(r, tasks, float(str(options["common_fraction"])))
    common = durations.gram(m, n, double=True) + durations.eigenpairs(r, count, double=True)
    outside = 2 * durations.product(m, count, n, double=True) + durations.leading(m, n, max(each, 1))
    both = durations.polar(r, m) + durations.polar(r, n)
    return common + tasks * outside + both + durations.product(m, r, n)


@method(
    space="delta",
    reads="matrix",
    title="Iso-CTS: isotropic merging in common and task-specific subspaces",
    formula="θ = θ₀ + α mean(s) polar([U_1 … U_T U_c]) polar([V_1 … V_T V_c])ᵀ on matrices, θ̄ elsewhere",
    paper="arXiv:2502.04959",
    elsewhere=average,
    shared=flattened,
    notes=(
        "where r is small beside the number of tasks, rounding leaves no task its own direction: it is Iso-C there",
        "the authors searched the coefficient on validation data, 0.1 to 3.0, and scale averaged tensors by it too; "
        "here the coefficient scales matrices only",
        "the authors' code treats every 2-D tensor as a matrix: --also projection,embedding",
        RULE,
    ),
    laws=Laws(transposes=False),  # projects from the left only, as its authors do
    work=Work(matrix=takes),
)
def iso_cts(
    matrices: TaskMatrices,
    shared: Flat | None = None,
    *,
    coefficient: Annotated[float, Option("scales the merged task vector")] = 1.0,
    common_fraction: Annotated[float, Option("share of the directions taken from the sum", low=0, high=1)] = 0.8,
) -> Matrix:
    """The base plus common and task-specific directions of equal strength.

    U_c, V_c: the leading components of Στ_t; U_t, V_t: those of τ_t - U_c U_cᵀ τ_t (Marczak et al., Iso-CTS; counts
    as in `split`). All are made orthonormal, and every singular value becomes the mean over the r = min(m, n) places
    (tasks' and sum's values mixed, zeros too). Returns the merged task vector.
    """
    flat = shared or flattened(matrices, common_fraction)
    return (coefficient * flat.total / matrices.full) * flat.directions
