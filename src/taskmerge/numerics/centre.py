"""The weighted mean of a stack and the differences from it, without losing the small differences' digits."""

import torch

from taskmerge.types import Merged, Stack, Weights


def shares(weights: Weights) -> list[float]:
    """Weights divided by their sum, as Python floats."""
    total = float(weights.sum())
    return [float(weight) / total for weight in weights]


def mean(stack: Stack, weights: Weights) -> Merged:
    """θ̄ = Σ w_t θ_t / Σ w_t, computed as θ_1 + Σ w_t (θ_t - θ_1) / Σ w_t: equal rows give that row exactly."""
    first = stack[0]
    offset, difference = torch.zeros_like(first), torch.empty_like(first)
    for row, share in zip(stack[1:], shares(weights)[1:], strict=True):
        offset.add_(torch.sub(row, first, out=difference), alpha=share)  # rounded at the scale of the differences
    return offset.add_(first)


def centre_(stack: Stack, weights: Weights) -> Merged:
    """Turns the rows θ_t into θ_t - θ̄ in place and returns θ̄.

    The differences keep full relative accuracy even where θ̄ itself must be rounded.
    """
    first = stack[0].clone()
    stack.sub_(first)
    offset = torch.zeros_like(first)
    for row, share in zip(stack[1:], shares(weights)[1:], strict=True):
        offset.add_(row, alpha=share)
    stack.sub_(offset)
    return first.add_(offset)
