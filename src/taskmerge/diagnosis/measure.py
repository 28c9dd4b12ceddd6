"""One pass over the weights of all inputs: how far experts are from the base and from each other."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.sources import Source, floating
from taskmerge.experts.tensors import Unit, unit_of
from taskmerge.merging.costs import Budget, in_flight
from taskmerge.merging.plan import CHUNK
from taskmerge.numerics.inner import gram
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.likeness import cosines, of_weights
from taskmerge.specs.merge import WIDENING
from taskmerge.types import Matrix, Space, TensorClass

PIECE = 16 * CHUNK
"""Elements that are one job: many enough that a large table is shared by all workers."""


@dataclass(frozen=True)
class Measured:
    """What the pass found of T experts.

    With a base (`based`) index 0 of the matrices is the base, and `inner` and `squares` are of task vectors; without
    one all are of the experts' weights. `squares[s, t]` is the square of s over what s and t share. `cosines`
    [matrix, k, k] and `lengths` [matrix, k] are those of weights in each of `matrices`, NaN where an expert lacks it.
    By expert: `changed` and `held` count, by class, the entries that differ from the base's in the expert's type, and
    all; `rounding` is the square of what that type takes from the base; `alone` says whether an expert has tensors that
    the base lacks or has in another shape. `same[s, t]`: they are equal; `shared[s, t]`: they have a tensor of one name
    and shape. `faults` counts entries that are not finite, by expert and tensor, `base_faults` those of the base.
    """

    tasks: tuple[str, ...]
    based: bool
    inner: Matrix
    squares: Matrix
    matrices: tuple[str, ...]
    cosines: Tensor
    lengths: Tensor
    changed: tuple[Counter[TensorClass], ...]
    held: tuple[Counter[TensorClass], ...]
    rounding: tuple[float, ...]
    alone: tuple[bool, ...]
    same: Tensor
    shared: Tensor
    faults: Mapping[str, Mapping[str, int]]
    base_faults: Mapping[str, int]
    tensors: int
    parameters: int


def measure(
    inputs: Inputs, names: Iterable[str], allowed: Budget, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Reads the floating-point tensors `names` of all experts, and what the base has of them, each once.

    Sums are taken in float64 in one order, whatever the number of workers. An expert counts where it has the base's
    shape (without a base: for those that share one). Slices of all inputs are held at a time, never a model. Raises
    `BadFile` for what cannot be read, `NotEnough` where memory is short.
    """
    base, experts = inputs.base, inputs.experts
    wide = any(spec.dtype == "F64" for source in inputs.sources for spec in source.specs.values())
    reader = _Reader(base, experts, torch.float64 if wide else torch.float32)
    pieces = [piece for name in sorted(names) for piece in reader.pieces(name)]
    totals = _Totals(base, experts, pieces)
    numbers, done = sum(piece.count for piece in pieces), 0
    heaviest = max(((piece.unit.name, piece.memory) for piece in pieces), key=lambda one: one[1], default=None)
    workers, most = allowed.workers, in_flight("comparing these", heaviest, allowed)
    with single_threaded(factoring=False):
        sums = parallel(pieces, reader.sums, workers=workers, in_flight=most, stop=reader.stop)
        for piece, found in zip(pieces, sums, strict=True):
            totals.add(piece, found)
            done += piece.count
            if progress is not None:
                progress(done, numbers)
    return totals.measured(reader.faults)


# --- what is read at a time ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """`count` elements from `start` on of a tensor that `members` hold in one shape: the base's, if `based`."""

    unit: Unit
    members: tuple[int, ...]
    based: bool
    start: int
    count: int
    memory: int

    @property
    def last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.start + self.count == self.unit.numel

    @property
    def matrix(self) -> bool:
        """Whether it is of what tells models apart: a matrix, a table, a kernel."""
        return self.unit.truncated(WIDENING)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Inner products (of base and task vectors; else of weights) and, by member: entries that differ from the base's in
    its type, the square of that rounding; which members are equal."""

    gram: Matrix
    changed: Tensor
    rounding: Tensor
    same: Tensor


class _Faults:
    """Entries that are not finite, by input and tensor; they count as zeros from then on."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()

    def __call__(self, source: Source, name: str, values: Tensor) -> None:
        odd = ~torch.isfinite(values)
        if isinstance(source, AdapterSource):  # its factors were not multiplied
            odd.fill_(True)
        values.masked_fill_(odd, 0)
        with self._lock:
            self._counts[id(source)][name] += int(odd.sum())

    def of(self, source: Source | None) -> dict[str, int]:
        """The counts of one input, by tensor."""
        return dict(sorted(self._counts[id(source)].items())) if id(source) in self._counts else {}


class _Reader:
    """Cuts tensors into pieces, and sums them up. Safe to use from several threads."""

    def __init__(self, base: Source | None, experts: Sequence[Source], dtype: torch.dtype) -> None:
        self.stop, self.faults = threading.Event(), _Faults()
        self._base, self._experts, self._dtype = base, experts, dtype
        self._rows: dict[tuple[tuple[int, ...], bool], Rows] = {}
        self._scratch = threading.local()

    def pieces(self, name: str) -> Iterator[_Piece]:
        """The pieces of a tensor: of those that share the base's shape, then of the others, by shape."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        origin = floating(self._base, name)
        for place, expert in enumerate(self._experts):
            spec = floating(expert, name)
            if spec is not None and spec.numel:
                shapes.setdefault(spec.shape, []).append(place)
        for shape, members in sorted(shapes.items(), key=lambda item: item[1]):
            based = origin is not None and origin.shape == shape
            spec = self._experts[members[0]].specs[name]
            yield from self._cut(unit_of(name, spec), tuple(members), based)

    def _cut(self, unit: Unit, members: tuple[int, ...], based: bool) -> Iterator[_Piece]:
        self._rows.setdefault((members, based), self._rows_of(members, based))
        rows = len(members) + based
        memory = min(unit.numel, CHUNK) * (4 * rows * self._dtype.itemsize + 16)  # rows, a copy, in float64, scratch
        for start in range(0, unit.numel, PIECE):
            yield _Piece(unit, members, based, start, min(PIECE, unit.numel - start), memory)

    def _rows_of(self, members: Sequence[int], based: bool) -> Rows:
        experts = [self._experts[place] for place in members]
        base = self._base if based else None
        space: Space = "delta" if based else "weight"
        return Rows(
            base, experts, space, even(experts), self._dtype, mend=self.faults, stop=self.stop, scratch=self._scratch
        )

    def sums(self, piece: _Piece) -> _Sums:
        """The sums over a piece, slice by slice."""
        rows, count = self._rows[piece.members, piece.based], len(piece.members)
        total = torch.zeros(count + piece.based, count + piece.based, dtype=torch.float64)
        changed, rounding = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.float64)
        same = torch.ones(count, count, dtype=torch.bool)
        for start in range(piece.start, piece.start + piece.count, CHUNK):
            size = min(CHUNK, piece.start + piece.count - start)
            origin, values = rows.of(piece.unit, start, size)
            total += gram(torch.cat([origin[None], values]) if piece.based else values)
            same &= _equal(values)
            if not piece.based:
                continue
            for place, gap in enumerate(self._gaps(piece, origin)):  # counted along an axis takes five times as long
                changed[place] += torch.count_nonzero(values[place] if gap is None else values[place] != gap)
                rounding[place] += 0 if gap is None else gap.nan_to_num(0, 0, 0).double().square().sum()
        return _Sums(total, changed, rounding, same)

    def _gaps(self, piece: _Piece, origin: Tensor) -> Iterator[Tensor | None]:
        """For every member what rounding to its type does to the base; None where its type holds the base's."""
        held = floating(self._base, piece.unit.name)
        known: dict[str, Tensor] = {}
        for place in piece.members:
            expert = self._experts[place]
            code = expert.specs[piece.unit.name].dtype
            if held is None or expert.kind != "weight" or _step(code) <= _step(held.dtype):
                yield None
                continue
            if code not in known:
                known[code] = origin.to(DTYPES[code]).to(origin.dtype) - origin
            yield known[code]


def _step(code: str) -> float:
    """How coarse a type is."""
    return torch.finfo(DTYPES[code]).eps


def _equal(rows: Tensor) -> Tensor:
    """Which rows are equal, entry for entry. Unequal ones mostly differ early, and are looked at no further."""
    first: list[int] = []
    for row in rows:
        known = (other for other in dict.fromkeys(first) if torch.equal(rows[other], row))
        first.append(next(known, len(first)))
    kinds = torch.tensor(first)
    return kinds[:, None] == kinds


# --- all of them -----------------------------------------------------------------------------------------------


class _Totals:
    """Adds pieces up, in their order."""

    def __init__(self, base: Source | None, experts: Sequence[Source], pieces: Sequence[_Piece]) -> None:
        based = base is not None
        count, side = len(experts), len(experts) + based
        self._base, self._experts, self._based = base, experts, based
        self._inner, self._squares = (torch.zeros(side, side, dtype=torch.float64) for _ in range(2))
        matrices = [piece for piece in pieces if piece.last and piece.matrix and piece.based == based]
        self._matrices = tuple(piece.unit.name for piece in matrices)
        self._cosines = torch.full((len(matrices), side, side), torch.nan)
        self._lengths = torch.full((len(matrices), side), torch.nan)
        self._filled = self._tensors = self._parameters = 0
        self._gram = torch.zeros(0, 0)
        self._rounding, self._alone = [0.0] * count, [False] * count
        self._changed: list[Counter[TensorClass]] = [Counter() for _ in experts]
        self._held: list[Counter[TensorClass]] = [Counter() for _ in experts]
        self._same = torch.ones(count, count, dtype=torch.bool)
        self._shared = torch.zeros(count, count, dtype=torch.bool)

    def add(self, piece: _Piece, sums: _Sums) -> None:
        """Adds the next piece."""
        members = torch.tensor(piece.members)
        places = members[:, None], members
        self._same[places] &= sums.same
        self._shared[places] = True
        if piece.start == 0:
            others = torch.tensor([place for place in range(len(self._experts)) if place not in piece.members]).long()
            self._same[members[:, None], others] = False
            self._same[others[:, None], members] = False
        if piece.based != self._based:
            for place in piece.members:
                self._alone[place] = True
            return
        for row, place in enumerate(piece.members):
            self._rounding[place] += float(sums.rounding[row])
            self._changed[place][piece.unit.kind] += int(sums.changed[row])
            self._held[place][piece.unit.kind] += piece.count
        self._gram = sums.gram if piece.start == 0 else self._gram + sums.gram
        if piece.last:
            self._tensor(piece, torch.cat([torch.zeros(1, dtype=torch.long), members + 1]) if self._based else members)

    def _tensor(self, piece: _Piece, members: Tensor) -> None:
        """Adds the tensor that ends with a piece."""
        places = members[:, None], members
        self._inner[places] += self._gram
        self._squares[places] += self._gram.diagonal()[:, None]
        self._tensors += 1
        self._parameters += piece.unit.numel
        if piece.matrix:
            weights = of_weights(self._gram) if self._based else self._gram
            self._cosines[self._filled][places] = cosines(weights).float()
            self._lengths[self._filled][members] = weights.diagonal().clamp(min=0).sqrt().float()
            self._filled += 1

    def measured(self, faults: _Faults) -> Measured:
        """The sums as they are now."""
        counts = {expert.task: found for expert in self._experts if (found := faults.of(expert))}
        return Measured(
            tuple(expert.task for expert in self._experts), self._based, self._inner, self._squares, self._matrices,
            self._cosines, self._lengths, tuple(self._changed), tuple(self._held),
            tuple(self._rounding), tuple(self._alone), self._same, self._shared, counts, faults.of(self._base),
            self._tensors, self._parameters,
        )  # fmt: skip
