"""Criteria that judge a merged model by its outputs and the experts' alone: no labels. Pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.numerics import losses
from taskmerge.numerics.agreement import SMALLEST, agreement, correlation
from taskmerge.specs.suite import TaskKind


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion: `classes` judges class scores [N, C] of checkpoint and expert, `values` outputs [N] of a
    regression (None: such tasks don't count). A checkpoint's value is the mean over its tasks."""

    name: str
    title: str
    classes: Callable[[Tensor, Tensor], float]
    values: Callable[[Tensor, Tensor], float] | None
    lower_is_better: bool = False

    def of(self, kind: TaskKind, outputs: Tensor, expert: Tensor) -> float | None:
        """The criterion on one task, or None where it says nothing about tasks of this kind."""
        compare = self._for(kind)
        return None if compare is None else compare(outputs, expert)

    def judges(self, kind: TaskKind) -> bool:
        """Whether it says anything about tasks of this kind."""
        return self._for(kind) is not None

    def _for(self, kind: TaskKind) -> Callable[[Tensor, Tensor], float] | None:
        return {"classification": self.classes, "regression": self.values}.get(kind)


def kappa(outputs: Tensor, expert: Tensor) -> float:
    """Agreement beyond chance (Cohen): (a - e) / (1 - e), e from how often each of the two predicts each class."""
    ours, theirs = outputs.argmax(1), expert.argmax(1)
    classes, count = expert.shape[1], len(expert)
    shares = [torch.bincount(predicted, minlength=classes).double() / count for predicted in (ours, theirs)]
    chance = float(shares[0] @ shares[1])
    return (agreement(outputs, expert) - chance) / (1 - chance) if 1 - chance > SMALLEST else 0.0


def confident_agreement(outputs: Tensor, expert: Tensor) -> float:
    """Agreement in which an item counts by the probability that the expert gives its own class."""
    sure = expert.double().softmax(1).amax(1)
    return float(((outputs.argmax(1) == expert.argmax(1)) * sure).sum() / sure.sum())


def shared_probability(outputs: Tensor, expert: Tensor) -> float:
    """Probability mass on which the two predictions overlap: 1 - total variation, averaged over items."""
    return _mean(torch.minimum(outputs.double().softmax(1), expert.double().softmax(1)).sum(1))


def entropy(outputs: Tensor, expert: Tensor) -> float:
    """Mean entropy of the checkpoint's own predictions in nats (AdaMerging's loss); the expert is not looked at."""
    return _mean(losses.entropy(outputs.double()))


def _mean(values: Tensor) -> float:
    return float(values.mean())


CRITERIA: Mapping[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion("agreement", "share of items with the expert's class", agreement, correlation),
        Criterion("kappa", "agreement beyond chance", kappa, correlation),
        Criterion("confident", "agreement, weighted by the expert's confidence", confident_agreement, correlation),
        Criterion("overlap", "shared probability mass with the expert", shared_probability, correlation),
        Criterion("entropy", "entropy of its own predictions", entropy, None, lower_is_better=True),
    )
}
