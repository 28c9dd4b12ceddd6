"""Scores and losses of the encoder as it is, task by task: items and labels are read once and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskmerge.data.items import Items
from taskmerge.data.labels import IGNORED
from taskmerge.errors import BadNumber
from taskmerge.evaluation.metrics import METRICS, contributions, score_of
from taskmerge.models.contract import Head
from taskmerge.models.outputs import Forward
from taskmerge.specs.suite import Task

Scored = list[dict[str, Any]]
"""One entry a task: its score with the 95% interval, and n; None where outputs are not finite."""


@dataclass(frozen=True)
class Examined:
    """One task's items, with the labels that scores and losses are taken against; `source` says whose labels these
    are: the split's (`true`) or the expert's (`expert`)."""

    task: Task
    items: Items
    head: Head
    labels: Tensor
    source: str
    fingerprint: str


@dataclass
class Judge:
    """Passes the items of tasks through the encoder. `seed` is that of bootstrap intervals."""

    forward: Forward
    tasks: Mapping[str, Examined]
    seed: int
    experts: Mapping[str, float] = field(default_factory=dict)
    """The experts' own scores, where they are known: what scores are normalised by."""

    def items(self, names: Sequence[str]) -> int:
        """How many items these tasks have together."""
        return sum(len(self.tasks[name].items) for name in names)

    def outputs(self, label: str, name: str) -> Tensor:
        """A task's outputs [N, …] under the encoder as it is, which messages call `label`."""
        one = self.tasks[name]
        self.forward.holds(label)
        parts = [part.values for part in self.forward.outputs(one.items.inputs, [(one.task, one.head)])]
        return torch.cat(parts)

    def scores(self, label: str, names: Sequence[str]) -> Scored:
        """The tasks' own metrics."""
        return [self._score(label, name) for name in names]

    def _score(self, label: str, name: str) -> dict[str, Any]:
        one, outputs = self.tasks[name], self._finite(label, name)
        if outputs is None:
            return {"task": name, "score": None, "low": None, "high": None, "n": len(one.items)}
        rows = contributions(one.task.metric, outputs, one.labels)
        score, _ = score_of(one.task.metric, rows, seed=self.seed, alone=True)
        return {"task": name, "score": score.value, "low": score.low, "high": score.high, "n": score.n}

    def losses(self, label: str, name: str) -> Tensor:
        """The loss of every item of a task, float64 [N]; NaN where outputs are not finite."""
        one, outputs = self.tasks[name], self._finite(label, name)
        if outputs is None:
            return torch.full((len(one.items),), torch.nan, dtype=torch.float64)
        return item_losses(one.task, outputs, one.labels)

    def _finite(self, label: str, name: str) -> Tensor | None:
        """`outputs`, or None where they are not finite: far from the experts there may be no model, as where a norm's
        variance falls below zero."""
        before = self.forward.done
        try:
            return self.outputs(label, name)
        except BadNumber:
            self.forward.done = before + len(self.tasks[name].items)  # as many are done with
            return None


def item_losses(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """float64 [N]: cross-entropy in nats (of maps, averaged over labelled pixels), squared errors of a regression, mean
    absolute errors of depth, mean angles of normals."""
    if task.kind == "classification":
        return cross_entropy(outputs.double(), labels, reduction="none")
    if task.kind == "regression":
        return (outputs.double().reshape(-1) - labels.double().reshape(-1)).square()
    if task.kind == "segmentation":
        places = cross_entropy(outputs.double(), labels, reduction="none", ignore_index=IGNORED)
        return places.flatten(1).sum(1) / (labels != IGNORED).flatten(1).sum(1).clamp(min=1)
    rows = contributions(task.metric, outputs, labels)
    return torch.from_numpy(rows[:, 0] / np.maximum(rows[:, -1], 1))


def as_labels(task: Task, outputs: Tensor) -> Tensor:
    """What an expert's outputs say in the place of labels."""
    return outputs.argmax(1) if task.kind in ("classification", "segmentation") else outputs


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """The mean over items and its standard error; one item has none, and NaN has neither."""
    if not bool(torch.isfinite(values).all()):
        return {"mean": None, "se": None}
    error = None if len(values) < 2 else float(values.std()) / len(values) ** 0.5
    return {"mean": float(values.mean()), "se": error}


def lower_is_better(task: Task) -> bool:
    """Whether the task's metric is an error."""
    return METRICS[task.metric].lower_is_better
