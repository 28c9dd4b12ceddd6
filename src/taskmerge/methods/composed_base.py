"""What adaptation learns about the base: the base plus every task vector with its own coefficient in every tensor."""

from typing import Annotated

from taskmerge.errors import UsageError
from taskmerge.methods.composed import LearnedTensor, form_dense, form_entries, form_matrix
from taskmerge.methods.contract import Reads, method
from taskmerge.methods.options import Option, Options
from taskmerge.methods.ties import Trim, elected_rows, measure
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.selection import Scan
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix, Merged, Stack


def _reads(options: Options) -> Reads:
    """Elements where nothing is factored. What is trimmed is not."""
    if options["rank"] is None:
        return "elements"
    if options["density"] is not None:
        hint = "leave out --rank or --density"
        raise UsageError("whole task vectors are trimmed, not their components", where="--density", hint=hint)
    return "matrix"


def trim(scan: Scan, *, density: float | None) -> Trim | None:
    """The whole model's thresholds and majority sign, as TIES' authors take them; None where nothing is trimmed."""
    return None if density is None else measure(scan, density, "next")


def composed_dense(stack: Stack, learned: LearnedTensor, statistic: Trim | None = None) -> Merged:
    """Σ_t λ_t τ_t under the mask of its entries, of trimmed task vectors where there is a statistic (AdaMerging++)."""
    rows = stack if statistic is None or not stack.numel() else elected_rows(stack, statistic)
    return form_entries(rows, learned)


@method(
    space="delta",
    reads=_reads,
    title="Learnt coefficients and components about the base",
    formula="θ = θ₀ + Σ_t λ_t U_t diag(b_t ∘ s_t) V_tᵀ on matrices, θ₀ + Σ_t λ_t τ_t elsewhere",
    paper="arXiv:2310.02575",
    elsewhere=composed_dense,
    statistic=trim,
    internal=True,
)
def composed_base(
    matrices: TaskMatrices,
    learned: LearnedTensor,
    *,
    rank: Annotated[Rank | None, Option("components stored of every task matrix", auto="none: all are dense")] = None,
    density: Annotated[
        float | None, Option("share of a task vector's entries kept", low=1e-6, high=1, auto="all, none trimmed")
    ] = None,
) -> Matrix:
    """The base plus what adaptation has learnt of every task vector.

    λ [tensor, task] and masks b [tensor, task, component] are those that `adapt` has written; without a mask all
    stored components count. A mask of entries, one for all tasks, is divided by its mean over the tensor. A trimmed
    task vector keeps the entries whose magnitude reaches the next one after the whole model's share and that agree with
    the elected sign (Yang et al., AdaMerging++). Returns the merged task vector.
    """
    return form_dense(matrices.stack, learned.coefficients) if rank is None else form_matrix(matrices, rank, learned)
