"""How far two models say the same of the same items."""

import torch
from torch import Tensor

SMALLEST = 1e-12
"""Spread below which values count as constant."""


def agreement(outputs: Tensor, expert: Tensor) -> float:
    """Share of items (of places, for maps [N, C, H, W]) on which both predict the same class."""
    return float((outputs.argmax(1) == expert.argmax(1)).double().mean())


def correlation(outputs: Tensor, expert: Tensor) -> float:
    """Pearson's correlation of two sets of values; 0 where one of them is constant."""
    ours, theirs = (values.double().flatten() for values in (outputs, expert))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    length = float(ours.norm() * theirs.norm())
    return float(torch.dot(ours, theirs)) / length if length > SMALLEST else 0.0
