"""What is read and merged at a time: a tensor with its class, role and depth, or the q, k and v of a block as one."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.experts.classes import attention_groups, block_of, classify, depths, position
from taskmerge.specs.merge import Qkv
from taskmerge.types import TensorClass

Role = Literal["attention", "mlp"]
ATTENTION_WORDS = frozenset({"attn", "attention", "selfattention", "encdecattention"})
TRUNCATED: tuple[TensorClass, ...] = ("linear", "stack")
"""The classes that spectral methods treat as matrices without being told."""
MLP_WORDS = frozenset({"mlp", "ffn", "fc", "fc1", "fc2", "intermediate", "experts", "moe", "densereludense", "output"})


class Part(NamedTuple):
    """One tensor of a unit."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Unit:
    """A tensor, or the q, k and v of a block that count as one; flattened, its parts lie one behind the other.

    `shape` is that of all parts joined. `pieces` matrices lie in it along `axis` (q, k and v in one tensor, taken
    apart); a stack of experts [E, m, n] is E matrices. `position` is its block's index and the number of blocks.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    kind: TensorClass
    pieces: int = 1
    axis: int = 0
    position: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def role(self) -> Role | None:
        """Whether it belongs to attention or to an MLP, as far as its name tells."""
        return role_of(self.name)

    @property
    def portion(self) -> tuple[int, ...]:
        """The shape of what methods on whole tensors see at once: the matrix of one expert of a stack, else all."""
        return self.shape[1:] if self.kind == "stack" and self.numel else self.shape

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of each of its matrices; see `matrix_shape`."""
        shape = list(self.portion)
        shape[self.axis : self.axis + 1] = [side // self.pieces for side in shape[self.axis : self.axis + 1]]
        return matrix_shape(self.kind, tuple(shape))

    @property
    def matrices(self) -> int:
        """How many matrices it holds."""
        return self.shape[0] if self.kind == "stack" else self.pieces

    def truncated(self, also: Container[str] = ()) -> bool:
        """Whether spectral methods truncate it: `also` are further classes that count as matrices."""
        return (self.kind in TRUNCATED or self.kind in also) and min(self.matrix) > 1

    def expert_at(self, start: int) -> int:
        """Which expert's matrix of a stack an element belongs to; 0 in other tensors."""
        return start // max(1, math.prod(self.portion)) if self.kind == "stack" else 0

    def matrix_at(self, start: int, piece: int = 0) -> int:
        """Which of its matrices a piece is of the portion that an element belongs to."""
        return self.expert_at(start) * self.pieces + piece

    def portions(self) -> Iterator[tuple[int, int]]:
        """(start, count) of every portion; an empty tensor is one empty portion."""
        count = math.prod(self.portion)
        for start in range(0, max(self.numel, 1), max(count, 1)):
            yield start, count

    def cut(self, rows: Tensor) -> list[Tensor]:
        """The pieces [T, *piece] of a portion [T, count]."""
        shaped = rows.view(len(rows), *self.portion)
        if self.pieces == 1:
            return [shaped]
        return [piece.contiguous() for piece in shaped.chunk(self.pieces, dim=self.axis + 1)]

    def whole(self, matrices: Sequence[Tensor]) -> Tensor:
        """All of its matrices, in the order of its portions, as the flat tensor that they make up."""
        shape = list(self.portion)
        shape[self.axis : self.axis + 1] = [side // self.pieces for side in shape[self.axis : self.axis + 1]]
        portions = [
            self.join([matrix.reshape(shape) for matrix in matrices[start : start + self.pieces]])
            for start in range(0, len(matrices), self.pieces)
        ]
        return portions[0] if len(portions) == 1 else torch.cat(portions)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The pieces of a portion as one again, flat."""
        joined = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=self.axis)
        return joined.reshape(-1)


def matrix_shape(kind: TensorClass, shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as a matrix: [out, in·kh·kw] for kernels, [rows, features] for tables."""
    numel = math.prod(shape)
    if kind == "conv":
        return shape[0], numel // max(1, shape[0])
    columns = shape[-1] if shape else 1
    return numel // max(1, columns), columns


def role_of(name: str) -> Role | None:
    """Attention or MLP, by the words of the modules around a parameter of a block; None where they don't tell."""
    if block_of(name) is None:
        return None
    around = {word for segment in name.lower().split(".")[:-1] for word in segment.split("_")}
    if around & ATTENTION_WORDS:
        return "attention"
    return "mlp" if around & MLP_WORDS else None


def unit_of(name: str, spec: TensorSpec) -> Unit:
    """A tensor by itself."""
    return Unit((Part(name, spec.shape),), spec.shape, classify(name, spec.shape, is_float(spec.dtype)))


def units(specs: Mapping[str, TensorSpec], qkv: Qkv = "as-is") -> list[Unit]:
    """All tensors as units, sorted by name; q, k and v count as one matrix or as three, as `qkv` says."""
    towers = depths(specs)
    groups = attention_groups({name: spec.shape for name, spec in specs.items() if is_float(spec.dtype)})
    by_name: dict[str, Unit] = {}
    for name, spec in specs.items():
        group = groups.get(name)
        if group is not None and qkv == "fused" and len(group.parts) > 1:
            unit = _fused([Part(part, specs[part].shape) for part in group.parts])
        else:
            unit = unit_of(name, spec)
            if group is not None and qkv == "split" and len(group.parts) == 1:
                unit = replace(unit, pieces=3, axis=group.axis if len(spec.shape) > 1 else 0)
        by_name[unit.name] = replace(unit, position=position(name, towers))
    return [by_name[name] for name in sorted(by_name)]


def _fused(parts: Sequence[Part]) -> Unit:
    """q, k and v as one tensor, one below the other."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Unit(tuple(parts), shape, classify(parts[0].name, shape, floating=True))
