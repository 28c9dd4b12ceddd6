"""Streams the matrices of all experts past what measures them: one at a time of every worker, never a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.errors import located
from taskmerge.experts.low_rank import subspaces
from taskmerge.experts.matrices import given_factors
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Role, Unit
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.whole import Whole
from taskmerge.spectra.intruders import known, nearest
from taskmerge.spectra.matrices import Asked, Measured, measure, solve_cores, solve_dense, solve_given
from taskmerge.types import Space, TensorClass

PIECES = ("q", "k", "v")


@dataclass(frozen=True, slots=True)
class Place:
    """Which matrix it is: its tensor, of a stack which expert's, of q, k and v in one tensor which of them."""

    name: str
    expert: int | None
    piece: str | None
    kind: TensorClass
    role: Role | None
    position: tuple[int, int] | None
    shape: tuple[int, int]

    @property
    def label(self) -> str:
        """The name of the matrix alone."""
        inside = [str(part) for part in (self.expert, self.piece) if part is not None]
        return f"{self.name}[{', '.join(inside)}]" if inside else self.name


@dataclass(frozen=True, slots=True)
class Found:
    """One matrix of T experts: what was measured about each origin; by task the share of zeros in the differences from
    the base, and for the leading directions of the expert [k] the largest cosine with any of the base's."""

    place: Place
    spaces: dict[Space, Measured]
    zeros: Tensor | None
    nearest: tuple[Tensor, ...] | None


@dataclass(frozen=True, slots=True)
class Job:
    """The matrices of one portion of a tensor, and the bytes that they take at their peak."""

    unit: Unit
    start: int
    count: int
    memory: int


@dataclass(frozen=True)
class Scan:
    """T experts, whose rows are differences from the base where there is one, else weights; `merged` is what they are
    compared with, if anything. `spaces` are the origins about which they are measured."""

    rows: Rows
    asked: Asked
    spaces: tuple[Space, ...]
    merged: Rows | None = None

    @property
    def experts(self) -> Sequence[Source]:
        return self.rows.experts

    @property
    def centred(self) -> bool:
        """Whether the rows are differences from the average already."""
        return any(expert.kind == "centred" for expert in self.experts)

    @property
    def based(self) -> bool:
        """Whether experts can be compared with a base that they were fine-tuned from."""
        return self.rows.base is not None and not self.centred

    def of(self, job: Job) -> list[Found]:
        """What is found of a job's matrices."""
        with located(f"`{job.unit.name}`"):
            origin, rows = self.rows.of(job.unit, job.start, job.count)
            merged = self._merged(job)
            pieces, cores = job.unit.cut(rows), self._solved(job)
            origins = job.unit.cut(origin[None]) if self.based else [None] * len(pieces)
            merges = job.unit.cut(merged) if merged is not None else [None] * len(pieces)
            return [
                self._found(job, place, *parts)
                for place, parts in enumerate(zip(pieces, origins, merges, cores, strict=True))
            ]

    def _merged(self, job: Job) -> Tensor | None:
        """The merged checkpoint's row [1, count], about the same origin as the experts'; None where it lacks it."""
        if self.merged is None or any(part.name not in self.merged.experts[0].specs for part in job.unit.parts):
            return None
        return self.merged.of(job.unit, job.start, job.count)[1]

    def _found(
        self, job: Job, piece: int, rows: Tensor, origin: Tensor | None, merged: Tensor | None,
        solved: dict[Space, list[Whole]],
    ) -> Found:  # fmt: skip
        """What is found of one matrix [T, ...] of a portion."""
        place = _place(job, piece)
        stack = rows.reshape(len(rows), *place.shape)
        other = None if merged is None else merged.reshape(place.shape)
        spaces: dict[Space, Measured] = {}
        zeros, near = None, None
        if origin is not None:
            base = origin.reshape(place.shape)
            directions = known(base)
            near = tuple(nearest(directions, base + matrix) for matrix in stack)
        if "delta" in self.spaces:
            whole = solved.get("delta") or solve_dense(stack, self.asked, "delta")
            spaces["delta"] = measure(stack, whole, place.shape, self.asked, "delta", other)
            zeros = spaces["delta"].counts.zeros
        if "centred" in self.spaces:
            if not self.centred:
                mean = centre_(stack, self.rows.weights)
                other = None if other is None else other - mean
            whole = solved.get("centred") or solve_dense(stack, self.asked, "centred")
            spaces["centred"] = measure(stack, whole, place.shape, self.asked, "centred", other)
        return Found(place, spaces, zeros, near)

    def _solved(self, job: Job) -> list[dict[Space, list[Whole]]]:
        """What is known of each piece without its product, from factors: of files, or of adapters."""
        unit, full = job.unit, min(job.unit.matrix)
        found: list[dict[Space, list[Whole]]] = [{} for _ in range(unit.pieces)]
        own: Space = "centred" if self.centred else "delta"
        given = given_factors(self.rows, unit, job.start)
        if given is not None:
            found[0][own] = solve_given(given, full, self.asked)
        spaces = subspaces(self.experts, unit, job.start, torch.float64) or []
        for solved, space in zip(found, spaces, strict=False):
            solved.setdefault(own, solve_cores(space.cores, full, self.asked))
            if not self.centred and len(space.cores) > 1:
                centre_(space.cores, self.rows.weights)
                solved["centred"] = solve_cores(space.cores, full, self.asked)
        return found


def _place(job: Job, piece: int) -> Place:
    unit = job.unit
    return Place(
        unit.name,
        unit.expert_at(job.start) if unit.kind == "stack" else None,
        PIECES[piece] if unit.pieces > 1 else None,
        unit.kind, unit.role, unit.position, unit.matrix,
    )  # fmt: skip


def jobs(units: Sequence[Unit], tasks: int, rank: Callable[[int], int], item: int, *, merged: bool) -> list[Job]:
    """The work on some tensors, in their order. `rank` has the components that are kept of a full rank, numbers take
    `item` bytes."""
    rows = tasks + 1 + merged
    found = []
    for unit in units:
        small, large = sorted(unit.matrix)
        matrices = (2 * rows if unit.pieces > 1 else rows) + 8
        factors = 2 * tasks * rank(small) * (small + large)
        for start, count in unit.portions():
            memory = matrices * item * count + 8 * factors + 64 * small**2
            found.append(Job(unit, start, count, memory))
    return found


def scan(
    work: Scan, todo: Sequence[Job], *, workers: int, in_flight: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[Found]:
    """What is found of all jobs, the largest first; several at once within `in_flight` bytes."""
    order = sorted(todo, key=lambda job: (-job.memory, job.unit.name, job.start))
    total, done = sum(job.count for job in order), 0
    with single_threaded():
        every = parallel(order, work.of, workers=workers, in_flight=in_flight, stop=work.rows.stop)
        for job, found in zip(order, every, strict=True):
            done += job.count
            if progress is not None:
                progress(done, total)
            yield from found
