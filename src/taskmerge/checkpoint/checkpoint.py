"""A checkpoint: the tensors of a model on disk, known from headers alone and read piece by piece."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from taskmerge.checkpoint.ahead import Stamp, stamp
from taskmerge.checkpoint.dequantise import dequantise, scale_rows, scale_values, scales_in_row
from taskmerge.checkpoint.descriptors import Descriptor
from taskmerge.checkpoint.dtypes import DTYPES, bytes_of, itemsize
from taskmerge.checkpoint.header import Header, Scaling, TensorSpec, read_header
from taskmerge.checkpoint.identity import changed, check_unchanged, stamps_of, still_read
from taskmerge.checkpoint.pickled import PickledSource
from taskmerge.checkpoint.quantised import as_weights, config_warning, read_config, unread_config
from taskmerge.checkpoint.weights import WeightFiles, find_weights, index_at
from taskmerge.documents import open_regular
from taskmerge.errors import BadFile, Mismatch, listed

PIECE = 1 << 20  # bytes
DECODED = 1 << 20  # codes that are dequantised at a time
REPLACED = 5
"""How often a model may be replaced while it is being opened."""


class ByteSource(Protocol):
    """Where the bytes of a checkpoint come from."""

    def read(self, spec: TensorSpec, target: memoryview, start: int) -> None:
        """Fill `target` with the tensor's bytes from `start` on; safe to call from several threads."""

    def check_unchanged(self) -> None:
        """Raise `BadFile` for a file that is no longer what it was when its header was read."""

    def close(self) -> None:
        """Give the files back."""


class Checkpoint:
    """The tensors of a model. `specs` is sorted by name; `read_into`, `read_codes` and `tensor` read their values.

    FP8 codes with scales are in `specs` as the weights that they stand for (`note` says so); `stored` is what the files
    hold, which `pieces` reads. `path` is what was opened, `folder` where config and tokenizer live (None for a lone
    file), `home` that or the file's own folder (None of what is in memory), `files` the weight files, `index` what
    joins them, `metadata` the text metadata of the first, `tied` second name -> first name of tensors that share
    storage (known for pickled files only), `quantised` what its weights are quantised with that cannot be read (None:
    nothing), `warnings` what was odd but readable. Safe to use from several threads.
    """

    def __init__(
        self,
        weights: WeightFiles,
        *,
        path: Path,
        specs: Mapping[str, TensorSpec],
        source: ByteSource,
        metadata: Mapping[str, str],
        tied: Mapping[str, str],
    ) -> None:
        self.path = path
        self.folder = weights.folder
        self.home = weights.home
        self.files = weights.files
        self.index = weights.index
        self.stored: Mapping[str, TensorSpec] = MappingProxyType(dict(sorted(specs.items())))
        self.metadata = metadata
        self.tied = tied
        config = read_config(self.home)
        read = as_weights(self.stored, config)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(dict(read.specs))
        self.quantised = read.quantised
        said = config_warning(config) if config is not None else unread_config(self.home)
        odd = self.quantised.what if self.quantised else None if read.note else said
        self.warnings = (*_warnings(weights), *([f"{path}: {odd}"] if odd else []))
        self.note = read.note
        self._source = source
        self._index = {weights.index: weights.index_stamp} if weights.index else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """`note` with the path."""
        return (f"{self.path} {self.note}",) if self.note else ()

    def read_into(self, name: str, buffer: Tensor, start: int = 0) -> None:
        """Fill `buffer` (uint8, 1-D, contiguous, CPU) with the tensor's bytes [start, start + len(buffer)); where its
        values stand for codes, with whole float32 numbers.

        Raises BadFile when the file ends before that or has changed since its header was read.
        """
        spec = self.specs[name]
        if spec.scaling is None:
            self._read(spec, buffer, start)
            return
        if start % DTYPES[spec.dtype].itemsize:
            raise ValueError(f"`{name}` is read by whole numbers, not from byte {start}")
        out = buffer.view(DTYPES[spec.dtype])
        codes = torch.empty(min(len(out), DECODED), dtype=torch.uint8)
        for begin in range(0, len(out), DECODED):
            piece = out[begin : begin + DECODED]
            self.read_codes(spec.scaling, codes[: len(piece)], start // piece.itemsize + begin, piece)

    def read_codes(self, scaling: Scaling, codes: Tensor, start: int, out: Tensor) -> None:
        """Fill `out` (float32, 1-D) with the values from element `start` on that codes and scales stand for, and
        `codes` (uint8) with these codes. Raises as `read_into`."""
        self._read(scaling.codes, codes, start)
        first, last = scale_rows(scaling, start, len(codes))
        width = scales_in_row(scaling)
        size = width * itemsize(scaling.scale.dtype)
        scales = torch.empty((last - first) * size, dtype=torch.uint8)
        self._read(scaling.scale, scales, first * size)
        dequantise(scaling, codes, scale_values(scales, scaling.scale).view(last - first, width), start, out)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, in memory of its own."""
        spec = self.specs[name]
        buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
        self.read_into(name, buffer)
        return buffer.view(DTYPES[spec.dtype]).reshape(spec.shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A stored tensor's bytes from front to back, 1 MiB at a time (uint8, valid until the next); at least one
        piece."""
        spec = self.stored[name]
        buffer = torch.empty(min(PIECE, spec.nbytes), dtype=torch.uint8)
        for start in range(0, max(spec.nbytes, 1), PIECE):
            piece = buffer[: spec.nbytes - start]
            self._read(spec, piece, start)
            yield piece

    def _read(self, spec: TensorSpec, buffer: Tensor, start: int) -> None:
        """Bytes of a stored tensor."""
        if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
            raise ValueError("buffer must be a contiguous 1-D uint8 tensor")
        if start < 0 or start + buffer.numel() > spec.nbytes:
            raise ValueError(f"`{spec.name}` has {spec.nbytes} bytes, asked for [{start}, {start + buffer.numel()})")
        if buffer.numel():
            self._source.read(spec, bytes_of(buffer), start)

    def check_unchanged(self) -> None:
        """Raise `BadFile` where a weight file or the index was rewritten since its header was read.

        What was read before may then be of two versions: to be asked after the last read, before the result counts.
        A file that was replaced by another of its name, once open, is read on as it was and has not changed.
        """
        check_unchanged(self._index)
        self._source.check_unchanged()

    def close(self) -> None:
        """Close the files; reads under way end first."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a .safetensors file, a sharded index, a model folder, or (if allowed) a pickled state dict.

    Reads headers only (pickles are loaded, weights-only). Whatever cannot be read is a `BadFile`; where an index was
    replaced meanwhile, and its shards with it, the new one is read.
    """
    for _ in range(REPLACED):
        before = index_at(path)
        try:
            return _opened(path, allow_pickle)
        except BadFile:
            if index_at(path) == before:
                raise
    return _opened(path, allow_pickle)


def _opened(path: Path, allow_pickle: bool) -> Checkpoint:
    weights = find_weights(path)
    if weights.pickled:
        return _open_pickled(path, weights, allow_pickle)
    stamps = stamps_of(weights.files)  # before the headers: a change from here on is seen
    headers = [read_header(file) for file in weights.files]
    specs = _joined(weights, [header.specs for header in headers])
    source = _FileSource(stamps)
    return Checkpoint(weights, path=path, specs=specs, source=source, metadata=_first_metadata(headers), tied={})


def open_plain(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open what will be computed with, as `open_checkpoint` does; quantised weights that cannot be read as numbers are
    a `Mismatch` that names their scheme."""
    return checked_plain(open_checkpoint(path, allow_pickle=allow_pickle))


def checked_plain(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that can be computed with. Raises `Mismatch`, and closes it, where `open_plain` does."""
    if (quantised := checkpoint.quantised) is not None:
        checkpoint.close()
        raise Mismatch(quantised.what, where=str(checkpoint.path), hint=quantised.hint)
    return checkpoint


def _first_metadata(headers: Sequence[Header]) -> Mapping[str, str]:
    return headers[0].metadata if headers else MappingProxyType({})


def _open_pickled(path: Path, weights: WeightFiles, allow_pickle: bool) -> Checkpoint:
    if not allow_pickle:
        os.close(open_regular(weights.files[0]))  # a missing file needs another message
        raise BadFile(
            "is a pickled checkpoint, which can run code when loaded",
            where=str(weights.files[0]),
            hint="convert it to safetensors, or pass --allow-pickle if you trust it (loaded weights-only)",
        )
    source = PickledSource(weights.files)
    specs = _joined(weights, [source.specs_of(file) for file in weights.files])
    return Checkpoint(weights, path=path, specs=specs, source=source, metadata={}, tied=source.tied)


def _joined(weights: WeightFiles, shards: Sequence[Mapping[str, TensorSpec]]) -> dict[str, TensorSpec]:
    """The shards' tensors as one map, after checking that index and shards agree in both directions."""
    if weights.weight_map is None:
        return dict(shards[0])
    problems: list[str] = []
    joined: dict[str, TensorSpec] = {}
    for file, specs in zip(weights.files, shards, strict=True):
        for name, spec in specs.items():
            if name in joined:
                problems.append(f"`{name}` is in {joined[name].file.name} and in {file.name}")
            elif name not in weights.weight_map:
                problems.append(f"`{name}` of {file.name} is not in the index")
            joined.setdefault(name, spec)
    for name, file in weights.weight_map.items():
        if name not in joined:
            problems.append(f"`{name}` is not in {file.name}")
        elif joined[name].file != file and not any(f"`{name}` is in" in problem for problem in problems):
            problems.append(f"`{name}` is in {joined[name].file.name}, not in {file.name}")
    if problems:
        what = f"index and shards disagree: {listed(problems, 5, between='; ', plain=True)}"
        raise BadFile(what, where=str(weights.index), hint="download index and shards again, from one revision")
    return joined


def _warnings(weights: WeightFiles) -> tuple[str, ...]:
    if not weights.strays:
        return ()
    names = listed((stray.name for stray in weights.strays), 5, plain=True)
    reader = weights.index.name if weights.index else weights.files[0].name
    return (f"{weights.folder}: not part of the model that {reader} describes, ignored: {names}",)


class _FileSource:
    """Bytes of safetensors files: each opened at its first read and shared between threads."""

    def __init__(self, stamps: Mapping[Path, Stamp | None]) -> None:
        self._stamps = stamps
        self._open: dict[Path, Descriptor] = {}
        self._closed = False
        self._lock = threading.Lock()

    def read(self, spec: TensorSpec, target: memoryview, start: int) -> None:
        with self._descriptor(spec.file).use() as number:
            _fill(number, spec, target, start)

    def check_unchanged(self) -> None:
        with self._lock:
            descriptors = dict(self._open)
        check_unchanged({file: before for file, before in self._stamps.items() if file not in descriptors})
        for file, descriptor in descriptors.items():
            with descriptor.use() as number:
                if not still_read(number, self._stamps[file]):
                    raise changed(file)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            descriptors = list(self._open.values())
            self._open.clear()
        for descriptor in descriptors:
            descriptor.close()

    def _descriptor(self, file: Path) -> Descriptor:
        with self._lock:
            if self._closed:
                raise ValueError("read from a closed checkpoint")
            if file not in self._open:
                number = open_regular(file)
                self._open[file] = Descriptor(number)
                if stamp(number) != self._stamps[file]:
                    raise changed(file)
            return self._open[file]


def _fill(number: int, spec: TensorSpec, target: memoryview, start: int) -> None:
    """Read until `target` is full: one call may return less than asked (2 GiB limit, signals)."""
    where = f"{spec.file}: `{spec.name}`"
    done = 0
    try:
        while done < len(target):
            count = os.preadv(number, [target[done:]], spec.start + start + done)
            if count == 0:
                what = f"the file ends inside the tensor (byte {spec.start + start + done})"
                raise BadFile(what, where=where, hint="it was cut while being read: copy it again")
            done += count
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", where=where, hint="check the disk") from error
