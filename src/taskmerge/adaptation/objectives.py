"""What is minimised on one task, and on which of its items: no label in sight, only the expert's outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.methods.adaptive import Filter, Objective, On
from taskmerge.numerics import losses
from taskmerge.specs.suite import DENSE, TaskKind

AGAINST_EXPERT: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "self": losses.self_label, "soft": losses.soft_self_label, "l1": losses.l1, "smooth_l1": losses.smooth_l1,
    "l2": losses.l2, "cosine": losses.cosine, "kl": losses.kl, "js": losses.js,
}  # fmt: skip
"""Losses between what the model and what the expert makes of the same items, one value an item."""
OF_CLASSES = ("self", "soft", "kl", "js")
INSTEAD: Mapping[TaskKind, Objective] = {"regression": "l2", "depth": "l1", "normals": "cosine"}
"""What stands for losses between class scores on tasks that have none."""


@dataclass(frozen=True, slots=True)
class TaskObjective:
    """The loss of one task. `on` says what is compared with the expert; entropy looks at the model's outputs alone."""

    name: Objective
    on: On = "outputs"
    filter: Filter = "none"

    def loss(self, features: Tensor, outputs: Tensor, expert: "ExpertView") -> Tensor:
        """One value an item, [B]."""
        if self.name == "entropy":
            return losses.entropy(outputs)
        if self.on == "features":
            return AGAINST_EXPERT[self.name](features, expert.features)
        return AGAINST_EXPERT[self.name](outputs, expert.outputs)

    def kept(self, outputs: Tensor, expert: "ExpertView") -> Tensor:
        """bool [B]: which items count.

        `code`: all but those on which the model disagrees with the expert and is surer than it, as in the public code;
        `paper`: those on which the model is not surer than the expert (top-1 probabilities).
        """
        if self.filter == "none" or outputs.dim() != 2:
            return torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
        ours, theirs = outputs.detach().softmax(1), expert.outputs.softmax(1)
        unsure = ours.amax(1) <= theirs.amax(1)
        return unsure if self.filter == "paper" else unsure | (ours.argmax(1) == theirs.argmax(1))


@dataclass(frozen=True, slots=True)
class ExpertView:
    """What the task's expert makes of a batch: `outputs` of its head [B, …], `features` [B, D] (empty if unused)."""

    outputs: Tensor
    features: Tensor


def objective_of(kind: TaskKind, name: Objective, on: On, filter_: Filter) -> TaskObjective | None:
    """The objective for one kind of task, or None where it says nothing about it: entropy about values.

    Filters and losses between class scores are for classes; for values a loss between values stands in.
    """
    if name == "entropy" and kind in INSTEAD:
        return None
    if on == "outputs" and name in OF_CLASSES and kind in INSTEAD:
        name = INSTEAD[kind]
    return TaskObjective(name, on, filter_ if kind not in DENSE and kind != "regression" else "none")
