"""The gradient of one task's mean loss at the encoder as it is, for some of its matrices: one backward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskmerge.merging.plan import TensorJob
from taskmerge.workflows.sweeps.judge import Judge
from taskmerge.workflows.sweeps.opening import Opened


def gradients(opened: Opened, judge: Judge, name: str, jobs: Sequence[TensorJob]) -> Mapping[str, Tensor] | None:
    """∂L/∂W [m, n] by unit, L the mean of `judge.losses`; None for tasks whose losses are no smooth function (maps)."""
    one, encoder = judge.tasks[name], opened.encoder
    if one.task.kind not in ("classification", "regression"):
        return None
    wanted = {slot for job in jobs for slot, _, _ in encoder.spots[job.name]}
    parameters = {slot: own for slot, own in opened.module.named_parameters() if slot in wanted}
    count, size, device = len(one.items), judge.forward.batch_size, judge.forward.device
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        for start in range(0, count, size):
            batch = {key: whole[start : start + size].to(device) for key, whole in one.items.inputs.items()}
            with torch.enable_grad():
                outputs = one.head(opened.module(batch))
                labels = one.labels[start : start + size].to(device)
                _loss(one.task.kind, outputs, labels, count).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        grads = {slot: own.grad.clone() for slot, own in parameters.items() if own.grad is not None}
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    return {job.name: _gathered(encoder.spots[job.name], grads).view(job.unit.matrix) for job in jobs}


def _loss(kind: str, outputs: Tensor, labels: Tensor, count: int) -> Tensor:
    """A batch's part of the mean over all items."""
    if kind == "classification":
        return cross_entropy(outputs.double(), labels, reduction="sum") / count
    return (outputs.double().reshape(-1) - labels.double().reshape(-1)).square().sum() / count


def _gathered(spots: Sequence[tuple[str, slice, torch.dtype]], grads: Mapping[str, Tensor]) -> Tensor:
    """The gradient of a unit, flat, from those of its parts."""
    return torch.cat([grads[slot].reshape(-1) for slot, _, _ in sorted(spots, key=lambda spot: spot[1].start)])
