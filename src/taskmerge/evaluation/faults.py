"""Which input is to blame: checkpoints that do not fit, all in one message, and the tensor whose numbers are wrong."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.errors import BadFile, BadNumber, Mismatch
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.fill import state_for
from taskmerge.specs.suite import Task

DAMAGED = "is the file damaged? download or copy it again"


def check_fits(backbone: Backbone, checkpoints: Iterable[Checkpoint], base: Checkpoint | None) -> None:
    """Raises Mismatch, from headers alone, for every checkpoint that does not fill the backbone."""
    found: list[Mismatch] = []
    for one in checkpoints:
        try:
            state_for(backbone, one, base)
        except Mismatch as error:
            found.append(error)
    if len(found) > 1:
        lines = "\n".join(f"  {one.where}: {one.what}" for one in found)
        raise Mismatch(f"{len(found)} checkpoints do not fit\n{lines}", hint=found[0].hint)
    if found:
        raise found[0]


def check_head(head: Head, task: Task) -> None:
    """Raises BadFile for a head with NaN or infinity."""
    tensors = head.state_dict() if isinstance(head, nn.Module) else {}
    made = {"zero_shot": "it is made by the base's text tower: ", "expert": "it is the expert's: "}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            where = f"{task.place}: `{task.head}`" if isinstance(task.head, str) else str(task.head)
            hint = made.get(str(task.head), "") + DAMAGED
            raise BadFile(f"the head's `{name}` holds NaN or infinity", where=where, hint=hint)


def check_outputs(outputs: Tensor, where: str) -> None:
    """Raises BadNumber for NaN and infinity."""
    if not bool(torch.isfinite(outputs).all()):
        raise BadNumber("outputs hold NaN or infinity", where=where)


def blamed(error: BadNumber, checkpoint: Checkpoint) -> BadNumber | BadFile:
    """What to say of outputs that are not finite: the checkpoint's tensor that is not, or (none is) the error itself.

    Reads the whole checkpoint.
    """
    for name, spec in checkpoint.specs.items():
        if is_float(spec.dtype) and not bool(torch.isfinite(checkpoint.tensor(name).float()).all()):
            return BadFile("holds NaN or infinity", where=f"{checkpoint.path}: `{name}`", hint=DAMAGED)
    hint = "its tensors are finite, so the numbers grow too large in between: is it of this architecture, and trained?"
    return BadNumber(error.what, where=error.where, hint=hint)
