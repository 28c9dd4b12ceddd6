"""What adaptation learns about the average: the average plus every centred task vector with its own coefficients."""

from typing import Annotated

from taskmerge.methods.composed import LearnedTensor, form_dense, form_entries, form_matrix
from taskmerge.methods.contract import method
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix, Merged, Stack


def composed_dense(stack: Stack, learned: LearnedTensor) -> Merged:
    """Σ_t λ_t τ̄_t under the mask of its entries, if it has one."""
    return form_entries(stack, learned)


@method(
    space="centred",
    reads=lambda options: "elements" if options["rank"] is None else "matrix",
    title="Learnt coefficients and components about the average",
    formula="θ = θ̄ + Σ_t λ_t U_t diag(b_t ∘ s_t) V_tᵀ on matrices, θ̄ + Σ_t λ_t (θ_t - θ̄) elsewhere",
    paper="arXiv:2412.12153",
    elsewhere=composed_dense,
    internal=True,
)
def composed_mean(
    matrices: TaskMatrices,
    learned: LearnedTensor,
    *,
    rank: Annotated[Rank | None, Option("components stored of every task matrix", auto="none: all are dense")] = None,
) -> Matrix:
    """The average plus what adaptation has learnt of every difference from it.

    λ [tensor, task] and masks b [tensor, task, component] are those that `adapt` has written; without a mask all
    stored components count. A mask of entries, one for all tasks, is divided by its mean over the tensor. Returns the
    merged difference.
    """
    return form_dense(matrices.stack, learned.coefficients) if rank is None else form_matrix(matrices, rank, learned)
