"""Concrete subspace learning: which entries of the task vectors count, for all tasks at once, learnt by entropy."""

from typing import Annotated

from taskmerge.methods.adaptive import Coefficients, Parts, Relaxed, Whole, adaptive
from taskmerge.methods.options import Option


@adaptive(
    title="Concrete: one mask over entries, shared by the tasks",
    formula="θ = θ₀ + m / mean(m) ∘ Σ_t λ_t τ_t, m = σ((logit + noise) / temperature), at last 1[logit + noise > 0]",
    paper="arXiv:2312.06173",
    parity={"clamped": False, "iterations": 1000, "batch_size": 16, "relaxed": 1e-3, "coefficients": 1e-3},
    notes=(
        "the default is concrete AdaMerging; `--train relaxed` is concrete task arithmetic, for which the authors make "
        "2,000 updates",
        "the authors' AdaMerging has two levels and two phases: in each of 1,000 updates coefficients start afresh and "
        "take one step (Adam at 1) under the drawn mask, then the mask takes one from there, on other images; after "
        "that coefficients alone learn for 1,000 updates, under one mask that is drawn for good. Here one loop learns "
        "both, from the same items",
        "the authors' models keep a drawn mask, by default one with values between 0 and 1; the model that is written "
        "here, and every look at held-out items, has their other choice, a draw of bits",
        "a tensor whose logits are all equal, such as one that no prediction depends on, has no mask: divided by its "
        "mean, it knows ratios alone",
    ),
)
def concrete(
    *,
    coefficient: Annotated[float | None, Option("where they start", auto="0.3, from 14 tasks on 0.1")] = None,
    temperature: Annotated[float, Option("of the concrete distribution: near 0 draws are 0 or 1", low=1e-3)] = 0.5,
) -> Parts:
    """A mask over the entries of all task vectors, and their coefficients, learnt by the entropy of predictions.

    The mask is the same for all tasks, drawn anew at every update, and divided by its mean over the tensor, so that
    what is left grows by what was taken (Tang et al., sec. 3). One Adam, learning rate 1e-3 for both.
    """
    return Parts(
        components=Whole(),
        learns={
            "relaxed": Relaxed(temperature=temperature, start=0.0), "coefficients": Coefficients(start=coefficient)
        },
        objective="entropy", iterations=1000, batch_size=16,
    )  # fmt: skip
