"""How far the adapted model says what the experts say, on items it doesn't learn from: a guide without labels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskmerge.adaptation.opening import ENCODED, head_outputs
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.models.encode import encode
from taskmerge.numerics.agreement import agreement, correlation
from taskmerge.processes import ALONE, Group


def agreements(
    sides: Sequence[TaskSide], held: Mapping[str, Tensor], device: torch.device, workers: int, group: Group = ALONE
) -> dict[str, float]:
    """By task, the agreement with its expert on held-out places: one forward by the weights as they are, no gradient.

    Share of items with the expert's class, of values their correlation with the expert's.
    """
    found = {}
    for side in sides:
        outputs = side_outputs(side, held[side.name], device, workers, group)
        expert = side.teacher.outputs[held[side.name]]
        of_classes = side.task.kind in ("classification", "segmentation")
        found[side.name] = agreement(outputs, expert) if of_classes else correlation(outputs, expert)
    return found


def side_outputs(
    side: TaskSide, places: Tensor, device: torch.device, workers: int, group: Group = ALONE
) -> Tensor:  # fmt: skip
    """The outputs of a task's own model on some of its items, without gradients, in the host's memory."""
    return head_outputs(side.head, adapted_features(side, places, device, workers, group), device)


def adapted_features(
    side: TaskSide, places: Tensor, device: torch.device, workers: int, group: Group = ALONE
) -> Tensor:  # fmt: skip
    """What a task's head sees of some of its items, without gradients, on the device."""
    if side.frozen is not None:
        features = side.frozen.values[places]
    else:
        inputs = {name: whole[places] for name, whole in side.items.inputs.items()}
        features = encode(side.module, inputs, batch_size=ENCODED, device=device, workers=workers, group=group)
    with torch.no_grad():
        adapted: Tensor = features if side.adapter is None else side.adapter(features)
    return adapted
