"""AdaMerging: coefficients of task vectors, learnt by the entropy of predictions."""

from typing import Annotated

from taskmerge.methods.adaptive import Coefficients, Layout, Parts, Whole, adaptive
from taskmerge.methods.options import Option


@adaptive(
    title="AdaMerging: coefficients learnt by entropy",
    formula="θ = θ₀ + Σ_t λ_t τ_t, one λ_t a tensor (or a model)",
    paper="arXiv:2310.02575",
    parity={"clamped": True, "iterations": 500, "batch_size": 32, "coefficients": 1e-3},
    notes=(
        "the authors clamp coefficients to [0, 1] in the forward pass, where a coefficient outside has no gradient "
        "(`--parity`), and take 32 images a task and update",
        "entropy of predictions says nothing about a regression: such a task is left to the others",
    ),
)
def adamerging(
    *,
    layout: Annotated[Layout, Option("one coefficient a task and tensor, or one a task")] = "tensor",
    coefficient: Annotated[float | None, Option("where they start", auto="0.3, from 14 tasks on 0.1")] = None,
) -> Parts:
    """Coefficients of task vectors, chosen by the entropy of the merged model's predictions.

    Joint updates of all tasks by Adam, learning rate 1e-3 (Yang et al., sec. 3.2). "Layer-wise" in the paper and every
    public code means one coefficient a task and tensor, biases and norms included.
    """
    return Parts(
        components=Whole(), learns={"coefficients": Coefficients(start=coefficient, layout=layout)}, objective="entropy"
    )
