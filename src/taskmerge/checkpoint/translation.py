"""A file's tensors as another file names and joins them: which of its own they are read from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from taskmerge.checkpoint.dialects import Piece
from taskmerge.checkpoint.dtypes import itemsize
from taskmerge.checkpoint.header import TensorSpec


@dataclass(frozen=True)
class Wording:
    """The tensors of a file, and the pieces that each of them is in all dialects."""

    specs: Mapping[str, TensorSpec]
    pieces: Mapping[str, tuple[Piece, ...]]

    def with_also(self, specs: Mapping[str, TensorSpec], pieces: Mapping[str, tuple[Piece, ...]]) -> "Wording":
        """The same with further tensors, which it does not have."""
        return Wording({**specs, **self.specs}, {**pieces, **self.pieces})


class Readable(Protocol):
    """What holds stored tensors: a checkpoint."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def read_into(self, name: str, buffer: Tensor, start: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """`count` elements of a stored tensor from `start` on."""

    stored: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A tensor that a file holds in other pieces: `parts` lie in it one behind the other. `spec` describes it."""

    spec: TensorSpec
    parts: tuple[Part, ...]

    @property
    def stored(self) -> tuple[str, ...]:
        """The stored tensors that it is read from."""
        return tuple(dict.fromkeys(part.stored for part in self.parts))

    def stored_as(self, names: Mapping[str, str]) -> "Joined":
        """The same, with the stored tensors called by their names in the file."""
        return replace(self, parts=tuple(replace(part, stored=names[part.stored]) for part in self.parts))

    def within(self, start: int, count: int) -> Iterator[Part]:
        """The stored elements that make up `count` of its own from `start` on, in order."""
        offset = 0
        for part in self.parts:
            low, high = max(start, offset), min(start + count, offset + part.count)
            if low < high:
                yield Part(part.stored, part.start + low - offset, high - low)
            offset += part.count

    def read_into(self, source: Readable, buffer: Tensor, start: int = 0) -> None:
        """Fills `buffer` (uint8, 1-D) with its bytes from `start` on, as a checkpoint does for a tensor."""
        size, done = itemsize(self.spec.dtype), 0
        for part in self.within(start // size, len(buffer) // size):
            source.read_into(part.stored, buffer[done : done + part.count * size], part.start * size)
            done += part.count * size


@dataclass(frozen=True)
class Translation:
    """A file in another one's words. `names`: name there -> own name of the same tensor; `joined`: name there -> what
    it is put together from. Own tensors that the other lacks are in `names` too, as the other would call them."""

    names: Mapping[str, str]
    joined: Mapping[str, Joined]

    def specs(self, own: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """The tensors that the file has in the other's words, sorted, of those that it has in its own."""
        plain = {name: own[stored] for name, stored in self.names.items()}
        return dict(sorted({**plain, **{name: one.spec for name, one in self.joined.items()}}.items()))

    @property
    def changed(self) -> dict[str, str]:
        """Own name -> name there, of everything that is read under another name."""
        renames = {own: name for name, own in self.names.items() if own != name}
        return renames | {one.parts[0].stored: name for name, one in self.joined.items()}

    @property
    def said(self) -> str:
        """How many tensors are read under other names, with an example; the other file's own name comes after it."""
        own, new = next(iter(self.changed.items()))
        many = f"{len(self.changed):,} tensors are" if len(self.changed) > 1 else "1 tensor is"
        return f"{many} read under other names (`{own}` as `{new}`): those of"


def translated(own: Wording, other: Wording) -> Translation:
    """A file in the words of another one."""
    index = {piece.key: (name, piece) for name, pieces in own.pieces.items() for piece in pieces}
    names: dict[str, str] = {}
    joined: dict[str, Joined] = {}
    for name, wanted in other.pieces.items():
        held = [index[piece.key] for piece in wanted if piece.key in index]
        if len(held) < len(wanted):
            continue
        parts = _merged([Part(stored, piece.start, math.prod(piece.shape)) for stored, piece in held])
        if len(parts) == 1 and parts[0].count == own.specs[parts[0].stored].numel:
            names[name] = parts[0].stored
        elif (spec := _joined_spec(other.specs[name], held, own.specs)) is not None:
            joined[name] = Joined(spec, parts)
    used = {*names.values(), *(stored for one in joined.values() for stored in one.stored)}
    left = [stored for stored in own.pieces if stored not in used]
    fronts = _fronts(other) if left and any(name != stored for name, stored in names.items()) else {}
    for stored in left:
        said = _said(own.pieces[stored][0].key, fronts) if len(own.pieces[stored]) == 1 else None
        taken = said is None or said in names or said in other.pieces or said in own.pieces
        names[stored if said is None or taken else said] = stored
    return Translation(dict(sorted(names.items())), joined)


def _fronts(other: Wording) -> dict[str, str]:
    """Module of a key -> the same module in the other file's words, for all modules around its tensors."""
    fronts: dict[str, str] = {}
    for name, pieces in other.pieces.items():
        if len(pieces) == 1:
            theirs, key = name.split("."), pieces[0].key.split(".")
            for back in range(1, min(len(theirs), len(key))):
                if theirs[-back] != key[-back]:
                    break
                fronts.setdefault(".".join(key[:-back]) + ".", ".".join(theirs[:-back]) + ".")
    return fronts


def _said(key: str, fronts: Mapping[str, str]) -> str | None:
    """What another file would call a tensor that it lacks, by the nearest module that both have; None where it has
    none."""
    segments = key.split(".")
    for count in range(len(segments) - 1, 0, -1):
        front = ".".join(segments[:count]) + "."
        if front in fronts:
            return fronts[front] + key.removeprefix(front)
    return None


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, neighbours in one stored tensor as one."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and last.stored == part.stored and last.start + last.count == part.start:
            merged[-1] = replace(last, count=last.count + part.count)
        else:
            merged.append(part)
    return tuple(merged)


def _joined_spec(
    wanted: TensorSpec, held: Sequence[tuple[str, Piece]], specs: Mapping[str, TensorSpec]
) -> TensorSpec | None:
    """The tensor that pieces make in place of the wanted one: a stack, if that is one, else rows below each other; None
    for pieces of different types or shapes."""
    first = specs[held[0][0]]
    shapes = {piece.shape for _, piece in held}
    if len({specs[stored].dtype for stored, _ in held}) > 1 or len(shapes) > 1:
        return None
    shape = shapes.pop()
    if len(held) > 1:
        stack = wanted.shape[:-2] if len(wanted.shape) > len(shape) else ()
        rows = len(held) * shape[0] // math.prod(stack)
        shape = (*stack, rows, *shape[1:])
    elif len(wanted.shape) > len(shape):
        shape = (1, *shape)
    return replace(first, name=wanted.name, shape=shape, nbytes=math.prod(shape) * itemsize(first.dtype))
