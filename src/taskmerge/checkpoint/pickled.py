"""Pickled state dicts (.bin, .pt, .pth, .ckpt), loaded weights-only and offered like safetensors files."""

import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import CODES, bytes_of
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.identity import changed, check_unchanged, stamps_of
from taskmerge.checkpoint.state_dicts import plain_tensors
from taskmerge.documents import expandable, open_regular, too_expansive
from taskmerge.errors import BadFile, listed

PIECE = 1 << 20
HINT = "save only the model's state_dict(), or convert it to safetensors"
VIEWS = 256 << 20
"""Bytes that tensors of a file may take when they are laid out, if its own size, twice, is less."""


class PickledSource:
    """The tensors of one or several pickled files, mapped into memory where the file's format allows it.

    `tied` maps the second name of tensors that are one and the same storage to the first, in order of names.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._stamps = stamps_of(files)
        loaded = {file: _load(file) for file in files}
        self._sizes = {file: file.stat().st_size for file in files}
        self.tied: Mapping[str, str] = _tied(loaded.values())
        self._states = {
            file: {name: tensor.contiguous() for name, tensor in state.items()} for file, state in loaded.items()
        }

    def specs_of(self, file: Path) -> dict[str, TensorSpec]:
        """The specs of one file's tensors."""
        return {name: _spec(name, tensor, file) for name, tensor in self._states[file].items()}

    def read(self, spec: TensorSpec, target: memoryview, start: int) -> None:
        """Fill `target` with the tensor's bytes (in C order) from `start` on."""
        if not self._states:
            raise ValueError("read from a closed checkpoint")
        content = bytes_of(self._states[spec.file][spec.name])[start : start + len(target)]
        for first in range(0, len(target), PIECE):
            self._check_whole(spec.file)
            target[first : first + PIECE] = content[first : first + PIECE]

    def _check_whole(self, file: Path) -> None:
        """Raise `BadFile` for a file that was cut: to touch what is mapped of its end would kill the process."""
        try:
            whole = os.stat(file).st_size >= self._sizes[file]
        except OSError:
            whole = True  # taken away or replaced: the file that is mapped stays
        if not whole:
            raise changed(file)

    def check_unchanged(self) -> None:
        """Raise `BadFile` for a file that is no longer what it was before it was loaded."""
        check_unchanged(self._stamps)

    def close(self) -> None:
        """Forget the tensors, which unmaps their files."""
        self._states = {}


def _load(file: Path) -> dict[str, Tensor]:
    start = _start(file)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.stat().st_size:
        raise BadFile("is a safetensors file, not a pickle", where=str(file), hint="name it .safetensors")
    mapped = start.startswith(b"PK") and _stored_plainly(file)
    try:
        with warnings.catch_warnings():  # torch's own advice: what can be said of a file is in our message
            warnings.simplefilter("ignore")
            loaded = torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        hint = "only plain state dicts of tensors are read: convert it to safetensors where it was made"
        raise BadFile(f"cannot be loaded weights-only: {_reason(error)}", where=str(file), hint=hint) from error
    state = plain_tensors(loaded, str(file), HINT)
    _check_views(file, state)
    return state


def _check_views(file: Path, state: Mapping[str, Tensor]) -> None:
    """Refuses views of little that stand for much: they would be laid out in full."""
    copied = sum(tensor.numel() * tensor.element_size() for tensor in state.values() if not tensor.is_contiguous())
    if copied > max(VIEWS, 2 * file.stat().st_size):
        names = [name for name, tensor in state.items() if not tensor.is_contiguous()]
        what = f"{listed(names)} would take {copied / 1e9:,.3g} GB: views, expanded or transposed, in a smaller file"
        raise BadFile(what, where=str(file), hint="save contiguous tensors: `tensor.contiguous()`")


def _start(file: Path) -> bytes:
    with open(open_regular(file), "rb") as stream:
        return stream.read(9)


def _stored_plainly(file: Path) -> bool:
    """Whether a zip archive holds its entries as they are: torch maps deflated ones too, and takes them for tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        methods = {entry.compress_type for entry in entries}
        size, stored = sum(entry.file_size for entry in entries), file.stat().st_size
    except Exception as error:  # zipfile raises a dozen kinds for tables of contents that are none
        what = f"is a damaged zip archive: {error}"
        raise BadFile(what, where=str(file), hint="download or copy it again") from error
    if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BadFile("is compressed in a way that torch cannot read", where=str(file), hint="save it with torch.save")
    if size > expandable(stored):
        raise too_expansive(stored, str(file))
    return methods <= {zipfile.ZIP_STORED}


def _reason(error: Exception) -> str:
    """What kept a pickle from being loaded, without torch's advice to load it unsafely."""
    blamed = re.search(r"GLOBAL (\S+)", str(error))
    if blamed:
        return f"it needs `{blamed[1]}`, which is no part of a state dict"
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if "TorchScript" in said:
        return "it is a TorchScript archive, which holds code"
    if "weights_only" in said:
        own = re.search(r"WeightsUnpickler error: *([^\n]*)", said)
        return own[1][:200] if own and own[1] else "it is no state dict"
    return said.splitlines()[0][:200] if said else type(error).__name__


def _spec(name: str, tensor: Tensor, file: Path) -> TensorSpec:
    nbytes = tensor.numel() * tensor.element_size()
    return TensorSpec(name, CODES[tensor.dtype], tuple(tensor.shape), file, 0, nbytes)


def _tied(states: Iterable[Mapping[str, Tensor]]) -> dict[str, str]:
    """Names whose tensor is the very same view of the same storage as one of an earlier name."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for state in states:
        for name, tensor in sorted(state.items()):
            if tensor.numel() == 0:
                continue
            view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape)
            same = first.setdefault((*view, tensor.stride()), name)
            if same != name:
                tied[name] = same
    return tied
