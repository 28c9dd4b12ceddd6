"""Losses that need no label: of a model's own outputs, or between its outputs and its expert's, one value an item.

Outputs are [item, class], or [item, class, *map] for dense tasks, where a loss is taken at every place and averaged
over the places; losses between values also take [item]. All are differentiable in the model's outputs, in the precision
of what comes in; none averages over items. No logarithm of zero is taken, however large the (finite) logits are.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, l1_loss, mse_loss, smooth_l1_loss

Outputs = Float[Tensor, "item *features"]
"""Class scores or values of N items; classes, or features, lie along dimension 1."""

PerItem = Float[Tensor, "item"]


def entropy(logits: Outputs) -> PerItem:
    """H(p) = -Σ_c p_c log p_c in nats, p = softmax(logits): from 0 to log C.

    The loss of Tent (Wang et al., arXiv:2006.10726) and AdaMerging (Yang et al., arXiv:2310.02575).
    """
    log_p = logits.log_softmax(1)
    return _per_item(-(log_p.exp() * log_p).sum(1))


def self_label(logits: Outputs, expert: Outputs) -> PerItem:
    """-log p_y, y = argmax_c of the expert's logits: cross-entropy with its hard label.

    The objective of Model Tinting and SyMerge (Jung et al., arXiv:2412.19098). Of equal scores the first is the label.
    """
    return _per_item(cross_entropy(logits, expert.argmax(1), reduction="none"))


def soft_self_label(logits: Outputs, expert: Outputs, *, temperature: float = 1.0) -> PerItem:
    """-Σ_c q_c log p_c, q = softmax(expert / temperature): cross-entropy with the expert's soft label.

    After Hinton et al. (arXiv:1503.02531, sec. 2), but the temperature softens the label only. Equal to `kl` plus the
    expert's entropy at temperature 1, and to `self_label` in the limit of 0.
    """
    return _per_item(-((expert / temperature).softmax(1) * logits.log_softmax(1)).sum(1))


def l1(outputs: Outputs, expert: Outputs) -> PerItem:
    """Mean over features of |a - b|: Representation Surgery's loss on features (Yang et al., arXiv:2402.02705)."""
    return _per_item(l1_loss(outputs, expert, reduction="none"))


def smooth_l1(outputs: Outputs, expert: Outputs) -> PerItem:
    """Mean over features of d²/2 where |d| < 1, else |d| - 1/2, d = a - b (Girshick, arXiv:1504.08083, eq. 3)."""
    return _per_item(smooth_l1_loss(outputs, expert, reduction="none"))


def l2(outputs: Outputs, expert: Outputs) -> PerItem:
    """Mean over features of (a - b)²."""
    return _per_item(mse_loss(outputs, expert, reduction="none"))


def cosine(outputs: Outputs, expert: Outputs) -> PerItem:
    """1 - ⟨a, b⟩ / ‖a‖‖b‖ over features, at every place of a map: from 0 to 2; 1 where a vector is zero."""
    return _per_item(1 - cosine_similarity(outputs, expert, dim=1))


def kl(logits: Outputs, expert: Outputs) -> PerItem:
    """KL(q ‖ p) = Σ_c q_c (log q_c - log p_c) in nats, p the model's softmax, q the expert's.

    Kullback and Leibler 1951 (doi:10.1214/aoms/1177729694); its gradient is that of `soft_self_label`
    at temperature 1.
    """
    return _per_item(_divergence(expert.log_softmax(1), logits.log_softmax(1)))


def js(logits: Outputs, expert: Outputs) -> PerItem:
    """KL(p ‖ m)/2 + KL(q ‖ m)/2 in nats, m = (p + q)/2: from 0 to log 2, symmetric (Lin 1991, doi:10.1109/18.61115)."""
    log_p, log_q = logits.log_softmax(1), expert.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return _per_item((_divergence(log_p, log_m) + _divergence(log_q, log_m)) / 2)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_c p_c (log p_c - log q_c) along dimension 1."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _per_item(values: Tensor) -> Tensor:
    """The mean over everything but items."""
    return values if values.dim() == 1 else values.flatten(1).mean(1)
