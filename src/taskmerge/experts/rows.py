"""The experts' rows of any tensor, without a plan: read, in the compute dtype, about the origin asked for."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskmerge.errors import Mismatch
from taskmerge.experts.parallel import Stopped
from taskmerge.experts.sources import NotFinite, Source, Tally
from taskmerge.experts.tensors import Part, Unit
from taskmerge.numerics.centre import centre_
from taskmerge.types import Space, Weights

CPU = torch.device("cpu")


def even(experts: Sequence[Source]) -> Weights:
    """The weight one of every expert."""
    return torch.ones(len(experts), dtype=torch.float64)


@dataclass(frozen=True)
class Rows:
    """Reads rows of the experts: `weight` θ_t, `delta` θ_t - θ₀, or `centred` θ_t - θ̄, the mean weighed by `weights`.

    `tallies`, by the identity of a source (two may read one file), collect digests of what is read. Where elements are
    not all finite, `mend` makes them so, given source, name and the elements as they were read; without it they are
    refused. Safe to use from several threads, each of which keeps its own scratch memory; once `stop` is set, they give
    up.
    """

    base: Source | None
    experts: Sequence[Source]
    space: Space
    weights: Weights
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    tallies: Mapping[int, Tally] = field(default_factory=dict)
    mend: Callable[[Source, str, Tensor], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    scratch: threading.local = field(default_factory=threading.local)

    def of(
        self, unit: Unit, start: int = 0, count: int | None = None, *, tallied: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(origin, rows [T, count]): `count` elements of a tensor from `start` on (all, if it is None), flat.

        The origin [count] is what a result in this space is added to; 0-D zero where nothing is. Both are this
        thread's scratch memory, good until it reads again.
        """
        count = unit.numel if count is None else count
        base, tasks = self._origin, len(self.experts)
        held = tasks + (base is not None)
        memory = self._scratch("rows", held * count, self.dtype).view(held, count)
        rows, origin = memory[:tasks], memory[tasks] if base is not None else memory.new_zeros(())
        if base is not None:
            self._fill(base, unit, start, origin, tallied)
        for expert, row in zip(self.experts, rows, strict=True):
            self._fill(expert, unit, start, row, tallied)
            if self.space == "weight" and expert.kind != "weight":
                row.add_(origin)
            elif self.space != "weight" and base is not None and expert.kind == "weight":
                row.sub_(origin)
        rows, origin = self.placed(rows), self.placed(origin)
        if self.recentred:
            origin = centre_(rows, self.weights).add_(origin)
        return origin, rows

    def base_of(self, unit: Unit, start: int, count: int) -> Tensor:
        """Elements of the base alone, in this thread's scratch memory."""
        if self.base is None:
            raise Mismatch("there is no base to read", where=f"`{unit.name}`")
        out = self._scratch("rows", count, self.dtype)
        self._fill(self.base, unit, start, out, tallied=True)
        return out

    def raw(self, source: Source, name: str) -> Tensor:
        """A tensor's bytes, as they are."""
        return source.raw(name, self.tallies.get(id(source)))

    def account(self) -> None:
        """Adds to the digests what experts are beyond the tensors that were read."""
        for expert in self.experts:
            tally = self.tallies.get(id(expert))
            if tally is not None:
                expert.account(tally)

    @property
    def recentred(self) -> bool:
        """Whether the mean is taken here: centred task vectors have theirs taken off already."""
        return self.space == "centred" and any(expert.kind != "centred" for expert in self.experts)

    def placed(self, tensor: Tensor) -> Tensor:
        """The tensor on the device of the arithmetic."""
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    @property
    def _origin(self) -> Source | None:
        """The base, where rows are differences from it or turned into weights by it."""
        needed = self.space == "delta" or any(expert.kind != "weight" for expert in self.experts)
        return self.base if needed else None

    def _scratch(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        """Memory of this thread: kept between tensors, so that pages are touched once."""
        held: Tensor | None = getattr(self.scratch, key, None)
        size = count * dtype.itemsize
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=torch.uint8)
            setattr(self.scratch, key, held)
        return held[:size].view(dtype)

    def _fill(self, source: Source, unit: Unit, start: int, out: Tensor, tallied: bool) -> None:
        """Elements of one source; what a task vector lacks is zero, what weights lack is the base's."""
        if self.stop.is_set():
            raise Stopped
        for part, offset, place in _overlaps(unit, start, out):
            if part.name not in source.specs and source.kind != "weight":
                place.zero_()
                continue
            holder = source if part.name in source.specs else self.base
            if holder is None:
                raise Mismatch(f"no input holds `{part.name}`")
            tally = self.tallies.get(id(source)) if tallied and holder is source else None
            try:
                holder.read(part.name, offset, place, self._scratch("raw", len(place) * 8, torch.uint8), tally)
            except NotFinite:
                if self.mend is None:
                    raise
                self.mend(holder, part.name, place)


def _overlaps(unit: Unit, start: int, out: Tensor) -> Iterator[tuple[Part, int, Tensor]]:
    """(part, element of it, the place in `out`) for each part of a unit that `out`, its elements from `start` on, has
    elements of; an empty tensor is read too, for its digest."""
    offset = 0
    for part in unit.parts:
        low, high = max(start, offset), min(start + len(out), offset + part.numel)
        if low < high or (part.numel == 0 and len(unit.parts) == 1):
            yield part, low - offset, out[low - start : high - start]
        offset += part.numel
