"""AdaMerging++: AdaMerging on task vectors that TIES has trimmed."""

from typing import Annotated

from taskmerge.methods.adaptive import Coefficients, Layout, Parts, Trimmed, adaptive
from taskmerge.methods.options import Option


@adaptive(
    title="AdaMerging++: coefficients of trimmed task vectors",
    formula="θ = θ₀ + Σ_t λ_t τ̂_t, τ̂_t the entries of τ_t that TIES keeps",
    paper="arXiv:2310.02575",
    parity={"clamped": True, "iterations": 500, "batch_size": 32, "coefficients": 1e-3},
    notes=(
        "the kept entries are those above TIES' whole-model threshold that agree with the elected sign, not averaged",
    ),
)
def adamerging_plus(
    *,
    density: Annotated[float, Option("share of entries kept, the largest by magnitude", low=1e-6, high=1)] = 0.2,
    layout: Annotated[Layout, Option("one coefficient a task and tensor, or one a task")] = "tensor",
    coefficient: Annotated[float | None, Option("where they start", auto="0.3, from 14 tasks on 0.1")] = None,
) -> Parts:
    """AdaMerging on task vectors from which TIES removed what is small or of the minority's sign."""
    return Parts(
        components=Trimmed(density),
        learns={"coefficients": Coefficients(start=coefficient, layout=layout)},
        objective="entropy",
    )
