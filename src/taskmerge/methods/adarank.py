"""AdaRank: which singular components of each task vector are merged, learnt by entropy."""

from typing import Annotated, Literal

from taskmerge.methods.adaptive import Coefficients, Masks, Parts, Truncated, adaptive
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import Rank

ALL = Rank("ratio", 1.0)


@adaptive(
    title="AdaRank: masks on singular components",
    formula="θ = θ_origin + Σ_t λ_t U_t diag(b_t ∘ s_t) V_tᵀ on matrices, θ_origin + Σ_t λ_t τ_t elsewhere",
    paper="arXiv:2503.22178",
    parity={"clamped": False, "iterations": 10_000, "batch_size": 16, "coefficients": 1e-3, "masks": 1e-3},
    notes=(
        "the authors run 10,000 updates at 1e-3, where no bit can flip before update 71: shorter runs need a larger "
        "rate of masks, by default 1/updates",
        "the authors keep the step with the best accuracy on the test images; here the horizon is fixed",
        "their configurations for CART's vectors start from a rank of 0.16 and coefficients of 2.3 (eight tasks)",
    ),
)
def adarank(
    *,
    origin: Annotated[Literal["base", "mean"], Option("what task vectors start from")] = "base",
    rank: Annotated[
        Rank | None, Option("components that are on at the start", auto="all from the base, 0.08 from the mean")
    ] = None,
    coefficient: Annotated[
        float | None,
        Option("where coefficients start", auto="0.3 from the base (0.1 from 14 tasks on), 1.0 from the mean"),
    ] = None,
    temperature: Annotated[float, Option("of the sigmoid in the masks' gradient", low=1e-3)] = 10.0,
) -> Parts:
    """Masks over singular components and coefficients, learnt together by the entropy of predictions.

    b = 1[β > 0] forward, σ(β/temperature) backward; β starts at ±0.1 (Lee et al., sec. 4). All components of a matrix
    are stored and can come back.
    """
    kept = rank or (ALL if origin == "base" else Rank("ratio", 0.08))
    return Parts(
        origin=origin, components=Truncated(ALL),
        learns={
            "coefficients": Coefficients(start=coefficient), "masks": Masks(kept=kept, temperature=temperature)
        },
        objective="entropy",
    )  # fmt: skip
