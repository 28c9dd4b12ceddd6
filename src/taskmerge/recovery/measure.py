"""One pass over a merged checkpoint and its candidates: inner products, and what rounding alone can explain."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Unit, unit_of
from taskmerge.merging.costs import Budget, in_flight
from taskmerge.merging.plan import CHUNK
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.inner import gram
from taskmerge.numerics.lapack import single_threaded
from taskmerge.recovery.moments import Moments
from taskmerge.types import Space, TensorClass

PIECE = 16 * CHUNK
"""Elements that are one job: many enough that a large table is shared by all workers."""
NARROW: Mapping[str, tuple[str, ...]] = {"F32": ("BF16", "F16"), "F64": ("BF16", "F16", "F32")}
"""Types whose numbers a file may hold in a wider one, the coarsest first."""
CLEAR = 8
"""Units in the last place beyond which a change is none of rounding."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The merged checkpoint, the experts that may have made it, and the base, if there is one."""

    merged: Source
    experts: tuple[Source, ...]
    base: Source | None


@dataclass(frozen=True, slots=True)
class TensorMoments:
    """What was summed over one tensor."""

    name: str
    kind: TensorClass
    moments: Moments


def measure(
    of: Candidates, names: Iterable[str], allowed: Budget, progress: Callable[[int, int], None] | None = None
) -> list[TensorMoments]:
    """Reads the tensors `names`, which all have in one shape, each once; sums are float64 and in one order.

    Slices of all inputs are held at a time, never a model. Raises `BadFile` for what cannot be read or is not finite,
    `NotEnough` where memory is short.
    """
    sources = [of.merged, *of.experts, *([of.base] if of.base else [])]
    wide = any(spec.dtype == "F64" for source in sources for spec in source.specs.values())
    reader = _Reader(of, torch.float64 if wide else torch.float32)
    pieces = [piece for name in sorted(names) for piece in reader.pieces(name)]
    heaviest = max(((piece.unit.name, piece.memory) for piece in pieces), key=lambda one: one[1], default=None)
    workers, most = allowed.workers, in_flight("comparing these", heaviest, allowed)
    numbers, done = sum(piece.count for piece in pieces), 0
    found: list[TensorMoments] = []
    with single_threaded(factoring=False):
        sums = parallel(pieces, reader.sums, workers=workers, in_flight=most, stop=reader.stop)
        for piece, one in zip(pieces, sums, strict=True):
            total = one if piece.start == 0 else found.pop().moments + one
            found.append(TensorMoments(piece.unit.name, piece.unit.kind, total))
            done += piece.count
            if progress is not None:
                progress(done, numbers)
    return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """`count` elements of a tensor from `start` on; `grain` is how the merged checkpoint holds it."""

    unit: Unit
    grain: "Grain"
    start: int
    count: int
    memory: int


class _Reader:
    """Cuts tensors into pieces, and sums them up. Safe to use from several threads."""

    def __init__(self, of: Candidates, dtype: torch.dtype) -> None:
        self.stop = threading.Event()
        self._of, self._dtype = of, dtype
        plain = all(source.kind == "weight" for source in (of.merged, *of.experts))
        first = [of.base] if plain and of.base else []
        sources = (*first, *of.experts, of.merged)
        self._plain, self._based = plain, of.base is not None
        self._weights = torch.ones(len(sources), dtype=torch.float64)
        self._weights[-1] = 0  # the experts' mean, not the merged checkpoint's
        space: Space = "weight" if plain else "delta"
        self._rows = Rows(of.base, sources, space, self._weights, dtype, stop=self.stop)
        self._spent = {code: threading.Event() for code in DTYPES}

    def pieces(self, name: str) -> Iterator[_Piece]:
        """The pieces of a tensor; none of an empty one."""
        spec = self._of.merged.specs[name]
        unit, rows = unit_of(name, spec), len(self._of.experts) + 2
        memory = min(unit.numel, CHUNK) * (4 * rows * self._dtype.itemsize + 16)  # rows, a copy, in float64, scratch
        for start in range(0, unit.numel, PIECE):
            yield _Piece(unit, grain_of(spec), start, min(PIECE, unit.numel - start), memory)

    def sums(self, piece: _Piece) -> Moments:
        """The sums over a piece, slice by slice."""
        total = Moments.none(len(self._of.experts))
        for start in range(piece.start, piece.start + piece.count, CHUNK):
            size = min(CHUNK, piece.start + piece.count - start)
            total += self._slice(piece, start, size)
        return total

    def _slice(self, piece: _Piece, start: int, size: int) -> Moments:
        """The sums over one slice, from differences to the base or else to the experts' mean."""
        origin, rows = self._rows.of(piece.unit, start, size)
        merged = rows[-1].clone() if self._plain else origin + rows[-1]
        if self._plain and self._based:
            origin, rows = rows[0], rows[1:]
            rows.sub_(origin)
        elif self._plain:
            origin = centre_(rows, self._weights)
        unit = piece.grain.unit(merged)
        narrow = {code: self._narrow(code, merged) for code in piece.grain.narrower if self._plain}
        reach = torch.linalg.vector_norm(rows[:-1], ord=math.inf, dim=0)  # the largest, without a copy
        clear, still = reach > CLEAR * unit, rows[-1] == 0
        return Moments(
            gram(torch.cat([origin[None], rows])), size, _squares(unit) / 12,
            {code: one for code, one in narrow.items() if one is not None},
            (int(clear.sum()), int((clear & still).sum())),
        )  # fmt: skip

    def _narrow(self, code: str, values: Tensor) -> float | None:
        """The square of rounding to a type, if it holds all values; None from the first on that it does not hold."""
        if self._spent[code].is_set():
            return None
        if not torch.equal(values.to(DTYPES[code]).to(values.dtype), values):
            self._spent[code].set()
            return None
        return _squares(Grain(code).unit(values)) / 12


@dataclass(frozen=True, slots=True)
class Grain:
    """How fine the numbers are that a type can hold; `scaled`: they are codes times a scale, so that the smallest ones
    are not known."""

    code: str
    scaled: bool = False
    narrower: tuple[str, ...] = field(default=(), compare=False)

    def unit(self, values: Tensor) -> Tensor:
        """The distance from each value to the next one of the type: its unit in the last place."""
        bits, kept = (torch.int64, 0x7FF << 52) if values.dtype == torch.float64 else (torch.int32, 0xFF << 23)
        power = values.contiguous().view(bits).bitwise_and(kept).view(values.dtype)  # 2^e, and 0 for the smallest
        finfo = torch.finfo(DTYPES[self.code])
        least = 0.0 if self.scaled else finfo.smallest_normal
        return power.clamp_(min=max(least, torch.finfo(values.dtype).smallest_normal)).mul_(finfo.eps)


def grain_of(spec: TensorSpec) -> Grain:
    """What the merged checkpoint's numbers are rounded to, by its header."""
    if spec.scaling is not None:
        return Grain(spec.scaling.codes.dtype, scaled=True)
    return Grain(spec.dtype, narrower=NARROW.get(spec.dtype, ()))


def _squares(values: Tensor) -> float:
    return float(gram(values[None]))


def by_class(tensors: Sequence[TensorMoments]) -> dict[TensorClass, Moments]:
    """The sums over all tensors of each class."""
    found: dict[TensorClass, Moments] = {}
    for one in tensors:
        found[one.kind] = found[one.kind] + one.moments if one.kind in found else one.moments
    return found
