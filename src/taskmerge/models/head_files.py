"""Heads as files: what `heads.file_head` reads, written."""

from pathlib import Path

from torch import Tensor, nn

from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.models.heads import HiddenHead, LinearHead


def head_tensors(head: nn.Module) -> dict[str, Tensor]:
    """The tensors of a head under the names that they have in its file, statistics of BatchNorm included; live ones.

    A linear head's are `weight` [C, D] and perhaps `bias` [C]; with a hidden layer `hidden.weight` [H, D],
    `hidden.bias` [H], `output.weight` [C, H] and perhaps `output.bias` [C]; a dense head's are those of its layers.
    """
    module = head if isinstance(head, LinearHead | HiddenHead) else _layers(head)
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}


def write_head(path: Path, head: nn.Module, *, overwrite: bool = False) -> None:
    """Writes a head so that `heads.file_head` makes the same of it; equal heads give equal bytes.

    The file is the old one or the new one, whole. Raises BadNumber for NaN or infinity, BadOutput where the file exists
    (without `overwrite`) or cannot be written.
    """
    record = {"kind": "head"} | ({"activation": head.activation} if isinstance(head, HiddenHead) else {})
    write_tensors(path, head_tensors(head), record, overwrite=overwrite)


def _layers(head: nn.Module) -> nn.Module:
    """What of a dense head is kept in its file."""
    from taskmerge.models.dense import DenseHead  # torchvision takes a second to import

    if not isinstance(head, DenseHead):
        raise TypeError(f"{type(head).__name__} is no head of a suite")
    return head.layers
