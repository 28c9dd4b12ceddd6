"""How far solved heads are pulled to those they start from, chosen by items that they are not fitted to."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from taskmerge.numerics.solved_heads import Solved, fit_logits, fit_values

PULLS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""What is tried for features of length 1, from a head that hardly moves to one that hardly stays."""
FOLDS = 4
ROUGH = 1e-3
"""Gradient tolerance at which pulls are compared."""


def pull_of_logits(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """The pull of `PULLS` by which `fit_logits` has the smallest mean cross-entropy on items left out of the fit.

    Every item is left out once, with a fourth of all. Shapes and errors are those of `fit_logits`.
    """

    def fit(places: Tensor, pull: float) -> Solved:
        return fit_logits(features[places], targets[places], weight, bias, pull=pull, gradient_tolerance=ROUGH)

    def loss(places: Tensor, solved: Solved) -> float:
        logits = _outputs(features[places], solved)
        return float(functional.cross_entropy(logits, targets[places].double(), reduction="sum"))

    return _smallest(fit, loss, len(features))


def pull_of_values(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """The pull of `PULLS` by which `fit_values` has the smallest mean squared error on items left out of the fit."""
    values = targets.unsqueeze(1) if targets.dim() == 1 else targets

    def fit(places: Tensor, pull: float) -> Solved:
        return fit_values(features[places], values[places], weight, bias, pull=pull)

    def loss(places: Tensor, solved: Solved) -> float:
        return float((_outputs(features[places], solved) - values[places]).square().sum())

    return _smallest(fit, loss, len(features))


def _outputs(features: Tensor, solved: Solved) -> Tensor:
    """z Hᵀ + b, [N, C, *map] in float64."""
    outputs = torch.einsum("nd...,cd->nc...", features.double(), solved.weight.flatten(1).double())
    if solved.bias is not None:
        outputs += solved.bias.double().view(-1, *[1] * (outputs.dim() - 2))
    return outputs


def _smallest(fit: Callable[[Tensor, float], Solved], loss: Callable[[Tensor, Solved], float], items: int) -> float:
    """The pull with the smallest loss, summed over the parts; too few items to leave any out choose the strongest."""
    if items < FOLDS:
        return PULLS[0]
    order = torch.randperm(items, generator=torch.Generator().manual_seed(items))
    parts = [order[fold::FOLDS].sort().values for fold in range(FOLDS)]
    rests = [torch.cat([other for other in parts if other is not part]).sort().values for part in parts]
    losses = [sum(loss(part, fit(rest, pull)) for part, rest in zip(parts, rests, strict=True)) for pull in PULLS]
    return PULLS[losses.index(min(losses))]
