"""What each task's expert says of its items: computed once an item, kept on disk between runs; no expert is held."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from taskmerge.adaptation.objectives import ExpertView
from taskmerge.checkpoint.dtypes import bytes_of
from taskmerge.checkpoint.small_files import write_small
from taskmerge.data.items import Items
from taskmerge.errors import TaskmergeError
from taskmerge.processes import ALONE, Group
from taskmerge.types import Note, unheard

ENDING = ".teacher"
FORMAT = 1


@dataclass(frozen=True)
class Teacher:
    """An expert's outputs [N, …] on all items of its task, and its features [N, D] (empty where nobody asks)."""

    outputs: Tensor
    features: Tensor

    def view(self, places: Tensor, device: torch.device) -> ExpertView:
        """Those of some items."""
        features = self.features[places] if len(self.features) else self.features
        return ExpertView(self.outputs[places].to(device), features.to(device))


@dataclass(frozen=True)
class TeacherCache:
    """Where experts' outputs are kept between runs (None: nowhere); `note` hears when nothing could be kept.

    Of several processes all compute, or none: they may not see the same disk.
    """

    folder: Path | None
    note: Note = unheard
    group: Group = ALONE

    def teacher(self, key: Mapping[str, object], items: Items, compute: Callable[[], Teacher]) -> Teacher:
        """What is kept under `key` and the items' content, else what `compute` makes, which is kept then."""
        if self.folder is None:
            return compute()
        file = self.folder / f"{_digest({**key, 'items': items.fingerprint})}{ENDING}"
        kept = _read(file, len(items))
        everywhere = self.group.all(kept is not None)
        if kept is not None and everywhere:
            return kept
        made = compute()
        if self.group.is_first:
            self._keep(file, made)
        return made

    def _keep(self, file: Path, teacher: Teacher) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_small(file, _packed(teacher))
        except (OSError, TaskmergeError) as error:
            self.note(f"{file.parent}: the experts' outputs could not be kept: {error}")


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a result as one, in the host's memory."""
    return torch.cat([part.cpu() for part in parts])


def _digest(key: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True, default=str).encode()).hexdigest()


def _packed(teacher: Teacher) -> bytes:
    """The file of a teacher, with the digest of its content."""
    tensors = {"outputs": teacher.outputs.contiguous(), "features": teacher.features.contiguous()}
    return save(tensors, {"content": _content(tensors)})


def _read(file: Path, count: int) -> Teacher | None:
    """What a file keeps, or None where there is none or it is not what was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {})["content"]
            tensors = {name: opened.get_tensor(name) for name in ("outputs", "features")}
    except (OSError, SafetensorError, KeyError):
        return None
    if _content(tensors) != told or len(tensors["outputs"]) != count:
        return None
    return Teacher(**tensors)


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bytes_of(tensor.contiguous()))
    return digest.hexdigest()
