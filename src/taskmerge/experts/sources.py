"""Where the rows of a merge come from: one view over full checkpoints, task vectors, factors and adapters."""

import hashlib
import math
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.digest import content_digest, digest_of, tensor_line
from taskmerge.checkpoint.dtypes import DTYPES, is_float, itemsize
from taskmerge.checkpoint.header import Scaling, TensorSpec
from taskmerge.checkpoint.translation import Joined, Translation
from taskmerge.errors import BadFile
from taskmerge.numerics.spectral import Factors
from taskmerge.specs.renaming import Renaming, renamed
from taskmerge.types import Space

LowRank = tuple[Tensor, Tensor]
"""left [m, r] and right [r, n]: their product is the task matrix, exactly."""


class NotFinite(BadFile):
    """A tensor holds NaN or infinity. Whoever reads whole numbers has them all the same, for what it was given to fill
    is filled; factors are not multiplied."""


class Tally:
    """Collects the content digest of one source while its tensors are read, each from front to back.

    `digests` are the SHA-256 of tensors whose bytes need no second look, by their names in the file.
    """

    def __init__(self, digests: Mapping[str, str] | None = None) -> None:
        self._digests = digests or {}
        self._running: dict[str, hashlib._Hash | None] = {}

    def update(self, name: str, raw: Tensor) -> None:
        """Adds the next bytes of a tensor."""
        if name in self._digests:
            self._running[name] = None
            return
        running = self._running.get(name) or self._running.setdefault(name, hashlib.sha256())
        if running is not None:
            running.update(raw.numpy().data)

    def knows(self, name: str) -> bool:
        """Whether a tensor's bytes need no second look; it counts as read from then on."""
        if name in self._digests:
            self._running[name] = None
        return name in self._digests

    def same_as(self, other: "Tally", source: "Source", base: "Source") -> bool:
        """Whether all that was read of the base was read of a source too, the same under the file's own names."""
        names = other._running
        return bool(names) and all(
            name in self._running and self._line(name, source.stored) == other._line(name, base.stored)
            for name in names
        )

    def finish(self, specs: Mapping[str, TensorSpec], names: Container[str] | None = None) -> tuple[str, int]:
        """The digest over all tensors read (or those of them that `names` holds), and how many there were."""
        lines = [self._line(name, specs) for name in self._running if names is None or name in names]
        return content_digest(lines), len(lines)

    def _line(self, name: str, specs: Mapping[str, TensorSpec]) -> str:
        running, spec = self._running[name], specs[name]
        return tensor_line(name, spec.dtype, spec.shape, running.hexdigest() if running else self._digests[name])


class Spread:
    """The stored tensors of which something was read; any thread adds to them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._lock = threading.Lock()

    def add(self, names: Iterable[str]) -> None:
        with self._lock:
            self._names.update(dict.fromkeys(names))

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self._names)


class Source(Protocol):
    """One expert, or the base: T tensors by name, as weights or as task vectors. Safe to use from several threads."""

    task: str
    kind: Space
    """What its tensors are: weights θ_t, differences from the base, or differences from the experts' average."""

    @property
    def where(self) -> str: ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors that this source stands for."""
        ...

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        """The tensors that its file holds, under the file's own names: what a digest is taken over."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """What taskmerge wrote into its metadata; empty where somebody else wrote it."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from: weights, index, configuration of an adapter."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where configuration and tokenizer lie, if it came from a model's folder."""
        ...

    @property
    def home(self) -> Path | None:
        """That folder, or the one that its file lies in; None of what is in memory."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """How it is read, where that is not as it is stored."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd but readable."""
        ...

    @property
    def cut(self) -> Mapping[str, int]:
        """The matrices of which components were left out when its file was written, and how many it holds."""
        ...

    def read(self, name: str, start: int, out: Tensor, raw: Tensor, tally: Tally | None) -> None:
        """Fills `out` (1-D, float32 or float64) with elements from `start` on; `raw` is scratch."""

    def raw(self, name: str, tally: Tally | None) -> Tensor:
        """A tensor's bytes as they are; an adapter leaves them as they are in its base."""
        ...

    def low_rank(self, name: str, matrix: int = 0) -> LowRank | None:
        """The exact factors of a task matrix (of a stack: of one of its experts), where this source has them."""

    def factors(self, name: str, matrix: int = 0) -> Factors | None:
        """The singular triplets of a task matrix, where its file holds them."""

    def account(self, tally: Tally) -> None:
        """Adds to its digest what it is more than the tensors that were read."""

    def matches(self, entry: Mapping[str, Any], merged: Container[str]) -> bool:
        """Whether it is what an entry of a provenance names, by content; `merged` are the tensors of that merge."""
        ...

    def check_unchanged(self) -> None:
        """Raises `BadFile` where one of its files was rewritten since it was opened: asked before a result counts."""

    def close(self) -> None:
        """Closes its files."""


class CheckpointSource:
    """A checkpoint's tensors under the names that they are read by: without a prefix, as `renamings` say, and as
    another file calls and joins them (`translate`). Of those that stand for codes, the digest is that of codes and
    scales."""

    def __init__(
        self,
        task: str,
        checkpoint: Checkpoint,
        kind: Space = "weight",
        prefix: str = "",
        record: Mapping[str, Any] | None = None,
        renamings: Sequence[Renaming] = (),
    ) -> None:
        self.task = task
        self.kind: Space = kind
        self.checkpoint = checkpoint
        self.record: Mapping[str, Any] = record or {}
        self._names = {renamed(name.removeprefix(prefix), renamings): name for name in checkpoint.specs}
        self._joined: Mapping[str, Joined] = {}
        self._spread = Spread()
        self.specs: Mapping[str, TensorSpec] = {short: checkpoint.specs[name] for short, name in self._names.items()}

    def translate(self, translation: Translation) -> None:
        """Calls and joins its tensors as a translation from its present names says."""
        own = self._names
        self.specs = translation.specs(self.specs)
        self._joined = {name: one.stored_as(own) for name, one in translation.joined.items()}
        self._names = {name: own[stored] for name, stored in translation.names.items()}

    @property
    def where(self) -> str:
        return str(self.checkpoint.path)

    @property
    def stored(self) -> Mapping[str, TensorSpec]:
        return self.checkpoint.stored

    @property
    def files(self) -> tuple[Path, ...]:
        index = self.checkpoint.index
        return (*self.checkpoint.files, *([index] if index else []))

    @property
    def folder(self) -> Path | None:
        return self.checkpoint.folder

    @property
    def home(self) -> Path | None:
        return self.checkpoint.home

    @property
    def notes(self) -> tuple[str, ...]:
        return self.checkpoint.notes

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.checkpoint.warnings

    @property
    def cut(self) -> Mapping[str, int]:
        return {}

    def stored_names(self, name: str) -> list[str]:
        """The file's own names of what a tensor is read from."""
        held = self._joined[name].stored if name in self._joined else (self._names[name],)
        return [part.name for stored in held for part in self.checkpoint.specs[stored].stored]

    def raw(self, name: str, tally: Tally | None) -> Tensor:
        spec = self.specs[name]
        raw = torch.empty(spec.nbytes, dtype=torch.uint8)
        if spec.scaling is None or name in self._joined:
            self._read_bytes(name, 0, raw, tally)
        else:
            codes = torch.empty(spec.numel, dtype=torch.uint8)
            self._read_codes(spec.scaling, codes, 0, raw.view(torch.float32), tally)
        return raw

    def read(self, name: str, start: int, out: Tensor, raw: Tensor, tally: Tally | None) -> None:
        """Elements of a tensor in the compute dtype; bad numbers are refused by name."""
        joined = self._joined.get(name)
        held = joined.spec if joined is not None else self.checkpoint.specs[self._names[name]]
        dtype, size = DTYPES[held.dtype], itemsize(held.dtype)
        buffer = out.view(torch.uint8) if dtype == out.dtype else raw[: len(out) * size]
        if held.scaling is None or joined is not None:
            self._read_bytes(name, start * size, buffer, tally)
        else:  # numbers take at most 4 of the 8 bytes that `raw` has for each
            codes = raw[len(out) * size :][: len(out)]
            self._read_codes(held.scaling, codes, start, buffer.view(dtype), tally)
        if dtype != out.dtype:
            out.copy_(buffer.view(dtype))
        if not finite(out):
            raise NotFinite(
                "the tensor holds NaN or infinity", where=f"{self.where}: `{name}`",
                hint="this checkpoint is damaged or its training diverged; leave it out",
            )  # fmt: skip

    def _read_bytes(self, name: str, start: int, raw: Tensor, tally: Tally | None) -> None:
        """Fills `raw` with the tensor's bytes from `start` on."""
        if (joined := self._joined.get(name)) is not None:
            joined.read_into(self.checkpoint, raw, start)
            self._spread.add(self.stored_names(name) if tally is not None else ())
            return
        self.checkpoint.read_into(self._names[name], raw, start)
        if tally is not None:
            tally.update(self._names[name], raw)

    def _read_codes(self, scaling: Scaling, codes: Tensor, start: int, out: Tensor, tally: Tally | None) -> None:
        """Fills `out` (float32) with the values of codes from `start` on, and `codes` with them; the scales are tallied
        with the first."""
        self.checkpoint.read_codes(scaling, codes, start, out)
        if tally is None:
            return
        tally.update(scaling.codes.name, codes)
        if start == 0:
            for piece in self.checkpoint.pieces(scaling.scale.name):
                tally.update(scaling.scale.name, piece)

    def low_rank(self, name: str, matrix: int = 0) -> LowRank | None:
        return None

    def factors(self, name: str, matrix: int = 0) -> Factors | None:
        return None

    def account(self, tally: Tally) -> None:
        """It is the tensors that are read: those that were read in other pieces than they are stored in, whole."""
        for stored in self._spread.names():
            for piece in [] if tally.knows(stored) else self.checkpoint.pieces(stored):
                tally.update(stored, piece)

    def matches(self, entry: Mapping[str, Any], merged: Container[str]) -> bool:
        names = self._read_by(merged)
        return len(names) == entry.get("tensors") and digest_of(self.checkpoint, names) == entry.get("digest")

    def _read_by(self, merged: Container[str]) -> list[str]:
        """What a merge with the tensors `merged` reads of its file, under the file's own names; all where none is."""
        names = (*self._names, *self._joined)
        read = dict.fromkeys(own for name in names if name in merged for own in self.stored_names(name))
        return list(read) or list(self.stored)

    def check_unchanged(self) -> None:
        self.checkpoint.check_unchanged()

    def close(self) -> None:
        self.checkpoint.close()


def finite(values: Tensor) -> bool:
    """Whether all values are finite; a finite sum proves it in one pass, a sum that is not is looked at closely."""
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def floating(source: Source | None, name: str) -> TensorSpec | None:
    """A tensor of numbers, if a source has one of the name."""
    spec = None if source is None else source.specs.get(name)
    return spec if spec is not None and is_float(spec.dtype) else None
