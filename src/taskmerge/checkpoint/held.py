"""State dicts in memory in a file's place: read in pieces like a file, never changed, never copied as a whole."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.dtypes import CODES
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.state_dicts import plain_tensors
from taskmerge.checkpoint.weights import WeightFiles
from taskmerge.errors import BadFile

HINT = "give the model's state_dict()"


@dataclass(frozen=True, eq=False, slots=True)
class Held:
    """A state dict that is an input under a name."""

    name: str
    tensors: Mapping[str, Tensor]

    def __str__(self) -> str:
        return f"{self.name} (in memory)"


Place = Path | Held
"""Where tensors are read from."""


def open_place(place: Place, *, allow_pickle: bool = False) -> Checkpoint:
    """Opens a state dict in memory, or what a path leads to. Raises what `plain_tensors` and `open_checkpoint` do."""
    return open_held(place) if isinstance(place, Held) else open_checkpoint(place, allow_pickle=allow_pickle)


def open_held(held: Held) -> Checkpoint:
    """A checkpoint of the tensors of a state dict, on whatever device they are."""
    source, path = _Memory(held), Path(str(held))
    specs = {
        name: TensorSpec(name, CODES[tensor.dtype], tuple(tensor.shape), path, 0, tensor.numel() * tensor.itemsize)
        for name, tensor in source.tensors.items()
    }
    return Checkpoint(WeightFiles((), pickled=False), path=path, specs=specs, source=source, metadata={}, tied={})


class _Memory:
    """The bytes of tensors in memory, in C order."""

    def __init__(self, held: Held) -> None:
        self._where = str(held)
        self.tensors = plain_tensors(held.tensors, self._where, HINT)
        self._versions = {name: _version(tensor) for name, tensor in self.tensors.items()}

    def read(self, spec: TensorSpec, target: memoryview, start: int) -> None:
        """Fills `target` with whole elements of the tensor from byte `start` on."""
        tensor = self.tensors[spec.name]
        first, odd = divmod(start, tensor.itemsize)
        if odd or len(target) % tensor.itemsize:
            raise ValueError(f"`{spec.name}` is read by whole elements, not {len(target)} bytes from {start} on")
        _copy(tensor, first, torch.frombuffer(target, dtype=tensor.dtype))

    def check_unchanged(self) -> None:
        """Raises `BadFile` for a tensor that was written to since it was given."""
        for name, tensor in self.tensors.items():
            if _version(tensor) != self._versions[name]:
                what = "was written to while it was being read"
                raise BadFile(what, where=f"{self._where}: `{name}`", hint="merge copies, or wait for what trains")

    def close(self) -> None:
        """Lets go of the tensors."""
        self.tensors = {}


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None of those that do not count it."""
    with suppress(RuntimeError):  # made in inference mode
        return tensor._version
    return None


def _copy(tensor: Tensor, start: int, out: Tensor) -> None:
    """Elements of a tensor, in C order from `start` on; where they don't lie so, no more than these are laid out."""
    if tensor.is_contiguous():
        out.copy_(tensor.view(-1)[start : start + len(out)])
        return
    row, done = tensor[0].numel(), 0
    while done < len(out):
        index, offset = divmod(start + done, row)
        whole = 0 if offset else (len(out) - done) // row
        count = whole * row or min(row - offset, len(out) - done)
        piece = out[done : done + count]
        if whole:
            block = tensor[index : index + whole]
            piece.view(block.shape).copy_(block)
        else:
            _copy(tensor[index], offset, piece)
        done += count
