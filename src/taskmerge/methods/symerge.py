"""SyMerge: coefficients and one layer of every task's own, the head or a block, learnt from the experts' labels."""

from dataclasses import replace

from taskmerge.methods.adaptive import Parts, adaptive
from taskmerge.methods.tint import START, tinted


@adaptive(
    title="SyMerge: coefficients and one task-specific layer",
    formula="θ = θ₀ + Σ_t λ_t τ_t, H_t (or one block of θ): min Σ_t CE(H_t(θ(x)), expert's label of x)",
    paper="arXiv:2412.19098",
    parity={"clamped": True, "iterations": 500, "batch_size": 32, "coefficients": 1e-2, "heads": 1e-2},
    notes=(
        "with the head as its layer it is Tinting++: the same loss and filter in the public codes",
        "blocks are counted as in tensor names, from 0: the paper's layer n is n - 1",
    ),
)
def symerge(*, coefficient: START = None) -> Parts:
    """Coefficients and one layer of every task's own, learnt from the labels that the task's expert gives.

    The layer is the head; `--layer INDEX` makes it a block of the encoder, which starts at the merged weights.
    """
    return replace(tinted(coefficient), filter="code")
