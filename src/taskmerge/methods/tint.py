"""Model Tinting and Tinting++: coefficients and heads, learnt from the experts' own labels."""

from typing import Annotated

from taskmerge.methods.adaptive import Coefficients, Heads, Parts, adaptive
from taskmerge.methods.options import Option

PUBLISHED = {"coefficients": 1e-2, "heads": 1e-2}
START = Annotated[float | None, Option("where coefficients start", auto="0.3, from 14 tasks on 0.1")]


def tinted(coefficient: float | None) -> Parts:
    """Coefficients and heads by self-labels, task after task in random order: what tint, tint++ and symerge share."""
    return Parts(
        learns={"coefficients": Coefficients(start=coefficient), "heads": Heads()},
        objective="self", updates="sequential", iterations=100, batch_size=32,
        rates=PUBLISHED,
    )  # fmt: skip


@adaptive(
    title="Model Tinting: coefficients and task-specific heads",
    formula="θ = θ₀ + Σ_t λ_t τ_t, H_t: min Σ_t CE(H_t(θ(x)), expert's label of x)",
    paper="arXiv:2412.19098",
    parity={"clamped": True, "iterations": 500, "batch_size": 32, "coefficients": 1e-2, "heads": 1e-2},
    notes=("the published recipe is one Adam at 1e-2 for coefficients and heads, 500 iterations of 32 items",),
)
def tint(*, coefficient: START = None) -> Parts:
    """Coefficients and every task's head, learnt from the labels that the task's expert gives (Jung et al.)."""
    return tinted(coefficient)
