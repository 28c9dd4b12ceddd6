"""Heads solved for on frozen features by the experts' soft labels: a convex problem a head (methods/heads.py)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.models.heads import HiddenHead, LinearHead
from taskmerge.numerics.head_pull import pull_of_logits, pull_of_values
from taskmerge.numerics.solved_heads import Solved, fit_logits, fit_values, soft_targets
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import DENSE, TaskKind


def fit_head(
    head: nn.Module,
    features: Tensor,
    expert: Tensor,
    kind: TaskKind,
    spec: AdaptSpec,
    original: nn.Module | None = None,
) -> Solved:
    """Puts into a head what fits the expert's outputs [N, …] best on features [N, …] that do not change.

    The pull is towards `original`, or the head as it comes. Of a head with hidden layers the last one is solved for,
    on what the others make of the features; of a map's, its last 1x1 convolution at the features' own resolution.
    """
    with torch.no_grad():
        layer, seen = _seen(head, features)
        anchor, _ = _seen(original, features) if original is not None else (layer, seen)
        weight, bias = anchor.weight.detach(), None if anchor.bias is None else anchor.bias.detach()
        solved = _solved(seen, expert, kind, weight, bias, spec)
        layer.weight.copy_(solved.weight.view_as(layer.weight))
        if layer.bias is not None and solved.bias is not None:
            layer.bias.copy_(solved.bias)
    return solved


def _seen(head: nn.Module, features: Tensor) -> tuple[nn.Linear | LinearHead | nn.Conv2d, Tensor]:
    """(the last layer, what it sees of the features), whatever comes before it."""
    if isinstance(head, LinearHead):
        return head, functional.normalize(features, dim=-1) if head.normalise else features
    if isinstance(head, HiddenHead):
        return _seen(head.output, getattr(functional, head.activation)(head.hidden(features)))
    layers = getattr(head, "layers", None)
    if isinstance(layers, nn.Sequential) and isinstance(last := layers[-1], nn.Conv2d):
        for layer in list(layers)[:-1]:  # a slice would be a DeepLabHead, which is not made from layers
            features = layer(features)
        return last, features
    raise TypeError(f"{type(head).__name__} is no head of a suite")


def _solved(
    seen: Tensor, expert: Tensor, kind: TaskKind, weight: Tensor, bias: Tensor | None, spec: AdaptSpec
) -> Solved:
    """The solution for one kind of task: classes by soft labels, values by ridge, maps place by place.

    Features are brought to a root mean square length of 1, so that a pull is as strong on BERT's as on CLIP's, which
    have that length already: on features ten times longer it would be a hundred times weaker.
    """
    expert = expert.to(seen.device, seen.dtype)
    length = float(seen.double().square().sum(1).mean().sqrt()) or 1.0
    seen, weight = seen / length, weight * length
    if kind in DENSE:
        expert = functional.interpolate(
            expert if expert.dim() == 4 else expert.unsqueeze(1), seen.shape[-2:], mode="bilinear", align_corners=True
        )
    if kind in ("classification", "segmentation"):
        solved = _tempered(seen, expert, weight, bias, spec)
    else:
        pull = spec.head_pull or pull_of_values(seen, expert, weight, bias)
        solved = fit_values(seen, expert, weight, bias, pull=pull)
    return replace(solved, weight=solved.weight / length)


def _tempered(seen: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None, spec: AdaptSpec) -> Solved:
    """The head whose logits are nearest to the expert's where both are divided by a temperature (Hinton et al.).

    By default that is the spread of the expert's logits over classes: soft labels of sure experts say nothing about
    all classes but one.
    """
    spread = max(float(logits.std(1).mean()), 1.0)
    temperature = spread if spec.head_temperature is None else spec.head_temperature
    targets = soft_targets(logits, temperature)
    weight, bias = weight / temperature, None if bias is None else bias / temperature
    pull = spec.head_pull or pull_of_logits(seen, targets, weight, bias)
    solved = fit_logits(seen, targets, weight, bias, pull=pull)
    warm = None if solved.bias is None else solved.bias * temperature
    return replace(solved, weight=solved.weight * temperature, bias=warm)
