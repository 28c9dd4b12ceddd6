"""Task arithmetic on truncated task vectors."""

from typing import Annotated

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.methods.task_arithmetic import task_arithmetic, usual_coefficient
from taskmerge.numerics import durations
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix, Weights


@method(
    space="delta",
    reads="matrix",
    title="Truncated task arithmetic",
    formula="θ = θ₀ + λ Σ_t w_t SVD_k(τ_t) on matrices, θ₀ + λ Σ_t w_t τ_t elsewhere",
    paper="arXiv:2412.12153",
    elsewhere=task_arithmetic,
    notes=("at full rank it is task arithmetic", "the rank is cut about the base; `cart` cuts it about the average"),
    laws=Laws(zero_task={"coefficient": 0.3, "rank": 0.5}),
    work=Work(matrix=lambda m, n, tasks, options: durations.truncated(m, n, tasks, options["rank"])),
)
def truncated_task_arithmetic(
    matrices: TaskMatrices,
    weights: Weights,
    *,
    rank: Annotated[Rank, Option("components kept of every task matrix")] = Rank("ratio", 0.08),
    coefficient: Annotated[
        float | None,
        Option(
            "scales the sum of truncated task vectors",
            auto="0.3; 0.1 from 14 tasks on",
            usual=lambda options, tasks: usual_coefficient(tasks),
        ),
    ] = None,
) -> Matrix:
    """The base plus the scaled sum of the leading components of every task vector.

    λ Σ w_t SVD_k(τ_t) (Choi et al.: truncation about the base, the baseline of CART); tensors that are no
    matrices add their whole task vectors with the same λ and weights. Returns the merged task vector.
    """
    scale = usual_coefficient(len(matrices)) if coefficient is None else coefficient
    return matrices.truncated_sum(rank, [scale * weight for weight in weights.tolist()])
