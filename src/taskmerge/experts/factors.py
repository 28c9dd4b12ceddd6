"""Task vectors as files, dense or as factors (`NAME.U`, `NAME.s`, `NAME.Vt`): read back in place of experts."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.errors import BadFile
from taskmerge.experts.sources import CheckpointSource, LowRank, NotFinite, Source, Tally, finite
from taskmerge.numerics.spectral import Factors
from taskmerge.types import Space

PARTS = (".U", ".s", ".Vt")
Origin = Literal["base", "centre"]


class VectorSource(CheckpointSource):
    """One task's vectors about an origin, from a file that `vectors` wrote: dense tensors, and matrices as factors.

    `specs` are the tensors that the vectors stand for, in the shapes of the base and the dtypes of the expert that they
    were taken from. The factors of a stack of experts lie stacked: U [E, m, k], s [E, k], Vt [E, k, n].
    """

    def __init__(self, task: str, checkpoint: Checkpoint, record: Mapping[str, Any], base: Source) -> None:
        kind: Space = "centred" if record.get("origin") == "centre" else "delta"
        super().__init__(task, checkpoint, kind, record=record)
        self.ranks: Mapping[str, int] = _ranks(record)
        usual, others = record.get("dtype"), record.get("dtypes") or {}
        plain = {name: spec for name, spec in checkpoint.specs.items() if name not in _parts(self.ranks)}
        dense = {**plain, **{name: self._dense(name, base) for name in self.ranks}}
        floats = {name: usual or spec.dtype for name, spec in dense.items() if is_float(spec.dtype)}
        codes = {**floats, **{name: code for name, code in others.items() if name in floats}}
        self.specs = {name: replace(spec, dtype=codes.get(name, spec.dtype)) for name, spec in sorted(dense.items())}

    def _dense(self, name: str, base: Source) -> TensorSpec:
        """The tensor that a set of factors stands for."""
        where = f"{self.where}: `{name}`"
        parts = [self.checkpoint.specs.get(name + part) for part in PARTS]
        if name not in base.specs or any(part is None or part.dtype != "F32" for part in parts):
            raise BadFile("its factors are not complete, or the base lacks that tensor", where=where)
        (*stack, m, k), values, (*other, rows, n) = (part.shape if part else () for part in parts)
        shape = base.specs[name].shape
        if values != (*stack, k) or other != stack or rows != k or math.prod((*stack, m, n)) != math.prod(shape):
            raise BadFile(f"its factors do not multiply to the base's shape {list(shape)}", where=where)
        first = self.checkpoint.specs[name + ".U"]
        nbytes = sum(part.nbytes for part in parts if part)
        return TensorSpec(name, "F32", shape, first.file, first.start, nbytes)

    def read(self, name: str, start: int, out: Tensor, raw: Tensor, tally: Tally | None) -> None:
        """Elements of the dense task vector; only the rows that hold them are multiplied out."""
        if name not in self.ranks:
            super().read(name, start, out, raw, tally)
            return
        if tally is not None and start == 0:
            self._tally(name, tally)
        m, n = self.checkpoint.specs[name + ".U"].shape[-2], self.checkpoint.specs[name + ".Vt"].shape[-1]
        done = 0
        while done < len(out):
            matrix, first = divmod(start + done, m * n)
            piece = out[done : done + m * n - first]
            self._multiply(name, matrix, first, piece)
            done += len(piece)
        if not finite(out):
            where = f"{self.where}: `{name}`"
            raise NotFinite("its factors hold NaN or infinity", where=where, hint="write the file again")

    def _multiply(self, name: str, matrix: int, start: int, out: Tensor) -> None:
        """Elements of U diag(s) Vt of one matrix from `start` on; of U only the rows that hold them are read."""
        (m, k), values, right = self._shape(name), self._part(name + ".s", matrix), self._part(name + ".Vt", matrix)
        width = right.shape[1]
        first, last = start // width, -(-(start + len(out)) // width)
        left = torch.empty(last - first, k)
        self.checkpoint.read_into(
            name + ".U", left.view(torch.uint8).view(-1), (matrix * m + first) * k * left.itemsize
        )
        rows = ((left * values).to(out.dtype) @ right.to(out.dtype)).reshape(-1)
        out.copy_(rows[start - first * width :][: len(out)])

    def _shape(self, name: str) -> tuple[int, int]:
        """Rows and components of each matrix of a factored tensor."""
        m, k = self.checkpoint.specs[name + ".U"].shape[-2:]
        return m, k

    def _part(self, stored: str, matrix: int) -> Tensor:
        """One factor of one matrix."""
        shape = self.checkpoint.specs[stored].shape
        values = torch.empty(shape[-1:] if stored.endswith(".s") else shape[-2:])
        self.checkpoint.read_into(stored, values.view(torch.uint8).view(-1), matrix * values.nbytes)
        return values

    def _tally(self, name: str, tally: Tally) -> None:
        """Digests the factors of a tensor, from front to back."""
        for part in PARTS:
            for piece in self.checkpoint.pieces(name + part):
                tally.update(name + part, piece)

    @property
    def cut(self) -> Mapping[str, int]:
        return {name: k for name, k in self.ranks.items() if k == self._shape(name)[1]}

    def low_rank(self, name: str, matrix: int = 0) -> LowRank | None:
        """U diag(s) and Vt."""
        factors = self.factors(name, matrix)
        return None if factors is None else (factors.u * factors.s, factors.vt)

    def factors(self, name: str, matrix: int = 0) -> Factors | None:
        """The triplets of a matrix as they were written, without those of value zero; None for a dense tensor."""
        if name not in self.ranks:
            return None
        u, s, vt = (self._part(name + part, matrix) for part in PARTS)
        rank = int((s > 0).sum())
        return Factors(u[:, :rank], s[:rank], vt[:rank])

    def _read_by(self, merged: Container[str]) -> list[str]:
        return stored_names(self.checkpoint, self.record, merged)


def _ranks(record: Mapping[str, Any]) -> Mapping[str, int]:
    """The factored tensors of a file and the number of components of each."""
    ranks = record.get("ranks") or {}
    return {str(name): int(count) for name, count in ranks.items()} if record.get("kind") == "factors" else {}


def _parts(names: Iterable[str]) -> set[str]:
    return {name + part for name in names for part in PARTS}


def stored_names(checkpoint: Checkpoint, record: Mapping[str, Any], merged: Container[str]) -> list[str]:
    """What a merge with the tensors `merged` reads of a file, under the file's own names; all where none is known."""
    dense = dense_names(checkpoint, record)
    read = [stored for name, parts in dense.items() if name in merged for stored in parts]
    return sorted(read) or list(checkpoint.stored)


def dense_names(checkpoint: Checkpoint, record: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tensors that a file of task vectors stands for, and which of its own tensors make up each."""
    factored = {name + part: name for name in _ranks(record) for part in PARTS}
    dense: dict[str, list[str]] = {}
    for name, spec in checkpoint.specs.items():
        dense.setdefault(factored.get(name, name), []).extend(part.name for part in spec.stored)
    return dense


def restrictions(experts: Sequence[Source], wanted: Mapping[str, int]) -> list[str]:
    """A note where factor files hold fewer components than a method asks for: `wanted` has the count of each matrix."""
    fewer: dict[str, tuple[int, int]] = {}
    for expert in experts:
        held = expert.cut
        short = [(held[name], count) for name, count in wanted.items() if held.get(name, count) < count]
        if short:
            fewer[expert.task] = min(short)
    if not fewer:
        return []
    least, most = min(fewer.values())
    return [
        f"the factors of {', '.join(fewer)} hold as few as {least} components where the method takes up to {most}: "
        "it works on those that there are"
    ]
