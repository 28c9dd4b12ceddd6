"""Tinting++: Model Tinting that leaves out items on which the expert is the less sure of two."""

from dataclasses import replace

from taskmerge.methods.adaptive import Parts, adaptive
from taskmerge.methods.tint import START, tinted


@adaptive(
    title="Model Tinting++: tinting on filtered items",
    formula="θ = θ₀ + Σ_t λ_t τ_t, H_t: min Σ_t CE(H_t(θ(x)), expert's label of x) over filtered items",
    paper="arXiv:2412.19098",
    parity={"clamped": True, "iterations": 500, "batch_size": 32, "coefficients": 1e-2, "heads": 1e-2},
    notes=(
        "the public code drops an item only where model and expert disagree and the model is the surer one, the paper "
        "wherever the model is the surer one (`--filter paper`)",
    ),
)
def tint_plus(*, coefficient: START = None) -> Parts:
    """Tinting without the items on which the merged model disagrees with the expert and is surer than it."""
    return replace(tinted(coefficient), filter="code")
