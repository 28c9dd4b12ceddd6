"""Where adaptation meets labels, by name: the supervised mode, and diagnostics that look on while it runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from taskmerge.adaptation.held_out import side_outputs
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.opening import Opened, Place
from taskmerge.adaptation.teachers import Teacher
from taskmerge.checkpoint.hub import resolve
from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Labelled
from taskmerge.data.loading import LoadOptions
from taskmerge.errors import UsageError
from taskmerge.evaluation.metrics import contributions, score_of
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Task

CERTAIN = 50.0
"""The logit of the labelled class: its probability is 1 to rounding."""


def labels_as_teachers(
    opened: Opened, *, spec: AdaptSpec, place: Place, cache: Path | None
) -> dict[str, Teacher]:  # fmt: skip
    """For the supervised mode: the labels of the split in the place of what experts say.

    Raises UsageError for a split without labels, and for tasks that have no classes.
    """
    loading = LoadOptions(resolve=resolve, limit=spec.limit, seed=spec.seed, cache=cache)
    teachers = {}
    for task in (one.task for one in opened.tasks):
        split = task.splits[spec.adapt_split]
        if task.kind != "classification":
            what = f"`{task.name}` is a task of {task.kind}: supervised heads learn classes alone"
            raise UsageError(what, where="--tasks", hint="name the tasks of classification")
        if split.y is None:
            what = f"split `{spec.adapt_split}` of `{task.name}` has no labels of classes"
            raise UsageError(what, where="--adapt-split", hint="supervised heads need them: name a labelled split")
        labels = load_labelled(task, spec.adapt_split, place.backbone.prepare, loading).labels
        head = next(one.head for one in opened.tasks if one.task is task)
        outputs = torch.nn.functional.one_hot(labels, int(getattr(head, "outputs"))) * CERTAIN  # noqa: B009  any head
        teachers[task.name] = Teacher(outputs.float(), torch.empty(0))
    return teachers


def watcher(adaptation: Adaptation, split: str, place: Place, cache: Path | None) -> Callable[[int], Mapping[str, Any]]:
    """Scores the model as it is on a labelled split: for curves, marked as diagnostic, never used for a choice."""
    loading = LoadOptions(resolve=resolve, cache=cache)
    labelled = {side.name: _labelled(side.task, split, place, loading) for side in adaptation.sides}

    def watch(update: int) -> Mapping[str, Any]:
        scores: dict[str, float] = {}
        for side in adaptation.sides:
            data = labelled[side.name]
            places = torch.arange(len(data))
            outputs = side_outputs(side.over(data.items), places, place.device, place.workers, place.group)
            score, _ = score_of(side.task.metric, contributions(side.task.metric, outputs, data.labels), seed=0)
            scores[side.name] = score.value
        return {"diagnostic": True, "split": split, "scores": scores}

    return watch


def _labelled(task: Task, split: str, place: Place, loading: LoadOptions) -> Labelled:
    if split not in task.splits or task.splits[split].y is None:
        what = f"split `{split}` of `{task.name}` has no labels"
        raise UsageError(what, where="--watch", hint="name a labelled split with --split")
    return load_labelled(task, split, place.backbone.prepare, loading)
