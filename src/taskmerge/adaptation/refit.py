"""Heads fitted to convergence at the end of a run, on the features that the adapted model gives."""

from collections.abc import Mapping, Sequence

from taskmerge.adaptation.fitted import fit_head
from taskmerge.adaptation.held_out import adapted_features
from taskmerge.adaptation.opening import OpenedTask, Place
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.numerics.solved_heads import Solved
from taskmerge.specs.adapt import AdaptSpec


def refit(
    sides: Sequence[TaskSide], opened: Sequence[OpenedTask], place: Place, spec: AdaptSpec
) -> Mapping[str, Solved]:  # fmt: skip
    """Every task's head solved for by its expert's soft labels, pulled towards its original one."""
    originals = {task.task.name: task.head for task in opened}
    solved = {}
    for side in sides:
        features = adapted_features(side, side.places, place.device, place.workers, place.group)
        expert = side.teacher.outputs[side.places]
        solved[side.name] = fit_head(side.head, features, expert, side.task.kind, spec, originals[side.name])
    return solved
