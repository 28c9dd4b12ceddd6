"""What a checkpoint loses and gains against the expert, and how well losses without labels follow the true one."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskmerge.evaluation.intervals import paired, wilson
from taskmerge.evaluation.metrics import score
from taskmerge.numerics import losses

FEWEST = 3
"""Items below which a rank correlation says nothing."""


def discrepancy(outputs: Tensor, expert: Tensor, labels: Tensor) -> dict[str, Any]:
    """Shares of N items: `lost` (the expert is right, the checkpoint wrong), `gained` (the other way round), each with
    its Wilson interval, and `net` = lost - gained with the paired one (Newcombe's).

    `outputs` and `expert` are class scores [N, C], `labels` [N].
    """
    right, expert_right = (outputs.argmax(1) == labels).numpy(), (expert.argmax(1) == labels).numpy()
    count = len(labels)
    return {
        "n": count,
        "lost": _share(int((expert_right & ~right).sum()), count),
        "gained": _share(int((right & ~expert_right).sum()), count),
        "net": dict(zip(("share", "low", "high"), paired(expert_right, right), strict=True)),
    }


def correlations(outputs: Tensor, expert: Tensor, labels: Tensor, *, seed: int = 0) -> list[dict[str, Any]]:
    """Spearman's correlation over items between losses that need no label and the cross-entropy with the label.

    `entropy` of the checkpoint's own prediction, and `expert_label`, its cross-entropy with the expert's prediction;
    over all items, and over those where the expert is wrong. `score` is None where a loss does not vary.
    """
    outputs = outputs.double()
    truth = cross_entropy(outputs, labels, reduction="none")
    of_items = {"entropy": losses.entropy(outputs), "expert_label": losses.self_label(outputs, expert)}
    wrong = expert.argmax(1) != labels
    parts = {"all": torch.ones_like(wrong), "expert wrong": wrong}
    return [
        {"loss": name, "items": items, "n": int(mask.sum())} | _spearman(loss[mask], truth[mask], seed)
        for name, loss in of_items.items()
        for items, mask in parts.items()
    ]


def _spearman(loss: Tensor, truth: Tensor, seed: int) -> dict[str, float | None]:
    """Rank correlation with its interval; None where one of them is constant or there are fewer than three items."""
    if len(loss) < FEWEST or bool((loss == loss[0]).all()) or bool((truth == truth[0]).all()):
        return {"score": None, "low": None, "high": None}
    correlation, _ = score("spearman", loss, truth, seed=seed)
    return {"score": correlation.value, "low": correlation.low, "high": correlation.high}


def _share(count: int, n: int) -> dict[str, float]:
    low, high = wilson(count, n)
    return {"share": count / n, "low": low, "high": high}
