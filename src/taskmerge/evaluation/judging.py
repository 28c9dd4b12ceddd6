"""What one checkpoint is worth on one data set: a row of the report, and what its outputs say beside the expert's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskmerge.evaluation.analyses import correlations, discrepancy
from taskmerge.evaluation.checkpoints import Encoder
from taskmerge.evaluation.estimates import Rows as Contributions
from taskmerge.evaluation.estimates import reliability
from taskmerge.evaluation.features import sample_of
from taskmerge.evaluation.metrics import score_of
from taskmerge.evaluation.scores import FeatureSet, Row
from taskmerge.evaluation.workload import Choice, DataSet, Key
from taskmerge.specs.suite import DENSE, Suite, Task


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: checkpoints on data sets, and what is wanted beside scores."""

    suite: Suite
    encoders: tuple[Encoder, ...]
    choice: Choice
    seed: int
    compare: bool = False
    loss_correlation: bool = False
    features: int | None = None

    def compares(self, task: Task) -> bool:
        """Whether outputs on a task are compared with those of its expert."""
        return (self.compare or self.loss_correlation) and task.kind == "classification"

    def sample(self, encoder: Encoder, data: DataSet) -> Tensor | None:
        """The items of a data set whose features are kept; None where none are: of data that was corrupted, of maps,
        and of experts on others' tasks."""
        own = encoder.own_task in (None, data.task.name)
        if self.features is None or not own or data.corruption is not None or data.task.kind in DENSE:
            return None
        return sample_of(data, self.features, self.seed)


@dataclass(frozen=True, slots=True)
class Scored:
    """What a checkpoint makes of a data set: what each item contributes to the metric, outputs where they are compared
    with the expert's, and the features of a sample where they are kept."""

    data: DataSet
    contributions: Contributions
    outputs: Tensor | None = None
    features: FeatureSet | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The row of one checkpoint on one data set; where it is compared with the expert, what that says; the features of
    a sample, where they are kept."""

    row: Row
    comparison: Mapping[str, Any] | None = None
    correlations: tuple[Mapping[str, Any], ...] = ()
    features: FeatureSet | None = None


def finding(asked: Evaluation, encoder: Encoder, scored: Scored, experts: Mapping[Key, Tensor]) -> Finding:
    """From what was scored, beside the `experts`' outputs where they are compared."""
    data, outputs = scored.data, scored.outputs
    task, corruption = data.task, data.corruption
    name, severity = (corruption.name, corruption.severity) if corruption else (None, None)
    score, correct = score_of(task.metric, scored.contributions, seed=asked.seed)
    row = Row(
        encoder=encoder.row, task=task.name, head=task.name, split=asked.choice.split, metric=task.metric,
        score=score, skipped=data.items.skipped, correct=correct, protocol=encoder.protocol,
        corruption=name, severity=severity,
        reliability=reliability(scored.contributions) if task.kind == "classification" else None,
    )  # fmt: skip
    if outputs is None or encoder.kind == "expert":
        return Finding(row, features=scored.features)
    place = {"encoder": encoder.row, "task": task.name, "corruption": name, "severity": severity}
    expert, labels = experts[data.key], data.labels
    losses = correlations(outputs, expert, labels, seed=asked.seed) if asked.loss_correlation else []
    comparison = place | discrepancy(outputs, expert, labels) if asked.compare else None
    return Finding(row, comparison, tuple(place | loss for loss in losses), scored.features)
