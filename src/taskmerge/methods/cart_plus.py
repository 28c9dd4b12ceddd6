"""CART++: coefficients of truncated centred task vectors, learnt by entropy."""

from typing import Annotated

from taskmerge.methods.adaptive import Coefficients, Parts, Truncated, adaptive
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import Rank


@adaptive(
    title="CART++: coefficients of truncated centred task vectors",
    formula="θ = θ̄ + Σ_t λ_t SVD_k(θ_t - θ̄) on matrices, θ̄ + Σ_t λ_t (θ_t - θ̄) elsewhere",
    paper="arXiv:2412.12153",
    notes=("the paper reports 86.6 on eight vision tasks, AdaRank's authors 85.8 for the same method",),
)
def cart_plus(
    *,
    rank: Annotated[Rank, Option("components kept of every centred task matrix")] = Rank("ratio", 0.08),
    coefficient: Annotated[float | None, Option("where coefficients start", auto="1.0")] = None,
) -> Parts:
    """CART whose coefficients are learnt by the entropy of predictions, one a task and tensor.

    It starts at CART itself: outside of matrices the equal coefficients of centred vectors cancel.
    """
    return Parts(
        origin="mean", components=Truncated(rank), learns={"coefficients": Coefficients(start=coefficient)},
        objective="entropy",
    )  # fmt: skip
