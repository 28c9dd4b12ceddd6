"""All subsets of the tasks: average, task arithmetic and CART of each, with means and standard errors by size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.errors import UsageError
from taskmerge.experts.matrices import task_matrices
from taskmerge.merging.plan import TensorJob
from taskmerge.methods.task_arithmetic import usual_coefficient
from taskmerge.numerics.gray import gray_subsets
from taskmerge.workflows.sweeps.averages import Means, over
from taskmerge.workflows.sweeps.encoder import Encoder
from taskmerge.workflows.sweeps.opening import Opened, needs
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.request import RANK
from taskmerge.workflows.sweeps.running import Measure, Planned, entries

MOST_TASKS = 12
"""4,095 subsets: more are no sweep."""

READ = 1 << 20
"""Elements that are read at a time: a read has its own price."""
PIECE = 1 << 16
"""Elements that are added up at a time: with their float64 sums they stay in a core's cache."""


@dataclass(frozen=True)
class SubsetsSweep:
    """Every non-empty subset is merged and scored on its own tasks. Sums change by one expert from subset to subset
    (Gray code, in float64, E6); CART factors anew."""

    opened: Opened
    kind: str = "subsets"

    @property
    def options(self) -> dict[str, Any]:
        return {"rank": str(RANK)}

    @property
    def methods(self) -> tuple[str, ...]:
        based = self.opened.encoder.base is not None
        return ("average", "task_arithmetic", "cart") if based else ("average", "cart")

    def points(self) -> list[Planned]:
        needs(self.opened, self.kind, tasks=2)
        count = len(self.opened.encoder.tasks)
        if count > MOST_TASKS:
            what = f"{count} tasks have {2**count - 1:,} subsets"
            raise UsageError(what, where="--sweep", hint=f"choose up to {MOST_TASKS} with --tasks")
        judge = self.opened.judge
        return [
            Planned(_point(method, names), judge.items(names)) for names in self._subsets() for method in self.methods
        ]

    def _subsets(self) -> list[list[str]]:
        tasks = self.opened.encoder.tasks
        return [[tasks[member] for member in members] for _, members in gray_subsets(len(tasks))]

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        running = Running(self.opened.encoder)
        for changed, members in gray_subsets(len(self.opened.encoder.tasks)):
            running.toggle(changed, members)
            names = [self.opened.encoder.tasks[member] for member in members]
            for method in self.methods:
                yield _point(method, names), partial(self._scored, running, method, names)

    def _scored(self, running: "Running", method: str, names: Sequence[str]) -> dict[str, Any]:
        """A merge of the members: the average is in the encoder before any other."""
        if method == "task_arithmetic":
            running.task_arithmetic()
        elif method == "cart":
            cart(running)
        return {"scores": self.opened.judge.scores(f"{method} of {', '.join(names)}", names)}

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        """Every subset, and by method and size the mean over subsets with its standard error (all subsets of a size are
        there, so it says how much subsets differ)."""
        points = [{**point, **result, **means.of(result["scores"])} for point, result in entries(self, found)]
        sizes = []
        for method in self.methods:
            for size in range(1, len(self.opened.names) + 1):
                own = [one for one in points if one["method"] == method and len(one["tasks"]) == size]
                plain = [one["average"]["value"] for one in own if one["average"] is not None]
                relative = [one["normalised"] for one in own if one["normalised"] is not None]
                sizes.append({
                    "method": method, "tasks": size, "subsets": len(own),
                    "average": over(plain) if len(plain) == len(own) else None,
                    "normalised": over(relative) if len(relative) == len(own) else None,
                })  # fmt: skip
        return {"points": points, "sizes": sizes}


def _point(method: str, names: Sequence[str]) -> dict[str, Any]:
    return {"method": method, "tasks": list(names)}


# --- sums ------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """Σ θ_t over the members of a subset, in float64: after thousands of changes its rounding is below the weights'."""

    encoder: Encoder
    members: tuple[int, ...] = field(init=False, default=())
    _sums: dict[str, Tensor] = field(init=False, default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return [self.encoder.tasks[member] for member in self.members]

    def toggle(self, changed: int, members: Sequence[int]) -> None:
        """Goes on to the next subset, and leaves its mean in the encoder. One expert comes or goes, and is all that is
        read."""
        encoder, share = self.encoder, 1 / len(members)
        sign = 1 if changed in members else -1
        rows = encoder.rows("weight", [encoder.tasks[changed]])

        def work(job: TensorJob) -> None:
            if job.name not in self._sums:
                self._sums[job.name] = torch.zeros(job.numel, dtype=torch.float64, device=encoder.device)
            for start, count in _slices(0, job.numel, READ):
                _, (row,) = rows.of(job.unit, start, count, tallied=False)
                for place, numbers in _slices(start, count, PIECE):
                    total = self._sums[job.name][place : place + numbers]
                    total.add_(row[place - start : place - start + numbers], alpha=sign)
                    self._put_mean(job, place, total, share)

        encoder.each(work, rows)
        self.members = tuple(members)

    def average(self) -> None:
        """Puts the mean of the members into the encoder."""
        share = 1 / len(self.members)

        def work(job: TensorJob) -> None:
            for place, numbers in _slices(0, job.numel, PIECE):
                self._put_mean(job, place, self._sums[job.name][place : place + numbers], share)

        self.encoder.each(work, self.encoder.rows("weight"))

    def _put_mean(self, job: TensorJob, start: int, total: Tensor, share: float) -> None:
        for own, target, code in self.encoder.targets(job, start, len(total)):
            torch.mul(total[own], share, out=target)
            _rounded(target, code)

    def task_arithmetic(self) -> None:
        """Puts θ₀ + λ Σ (θ_t - θ₀) over the members into the encoder."""
        encoder, size = self.encoder, len(self.members)
        scale, rows = usual_coefficient(size), encoder.rows("delta")

        def work(job: TensorJob) -> None:
            for start, count in _slices(0, job.numel, READ):
                base = rows.placed(rows.base_of(job.unit, start, count))
                for place, numbers in _slices(start, count, PIECE):
                    total = base[place - start : place - start + numbers].double().mul_(1 - scale * size)
                    total.add_(self._sums[job.name][place : place + numbers], alpha=scale)
                    for own, target, code in encoder.targets(job, place, numbers):
                        target.copy_(total[own])
                        _rounded(target, code)

        encoder.each(work, rows)

    def mean_of(self, job: TensorJob) -> Tensor:
        """The mean of the members, of one unit."""
        return (self._sums[job.name] / len(self.members)).to(self.encoder.dtype)


def _rounded(target: Tensor, code: torch.dtype) -> None:
    """Rounds what is in the encoder to the type of a file."""
    if code != target.dtype:
        target.copy_(target.to(code))


def _slices(start: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, count) of slices of `size` of the `count` elements from `start` on; no elements are one empty slice."""
    for place in range(start, start + max(count, 1), size):
        yield place, min(size, start + count - place)


# --- CART ------------------------------------------------------------------------------------------------------


def cart(running: Running) -> None:
    """Puts CART of the members into the encoder; of one or two it is their average (E3).

    Every subset has its own mean, so that its matrices are factored anew: Gram matrices of pairs (E6) would spare
    products alone, and the float64 eigenpairs that they need take longer than what is spared (docs/sweeps.md).
    """
    if len(running.members) < 3:
        running.average()
        return
    encoder = running.encoder
    rows = encoder.rows("centred", running.tasks)

    def work(job: TensorJob) -> None:
        if not job.factored:
            encoder.put(job, running.mean_of(job))
            return
        for start, count in job.unit.portions():
            origin, vectors = rows.of(job.unit, start, count, tallied=False)
            origin, merged = origin.clone(), []
            for piece in job.unit.cut(vectors):
                made = task_matrices(rows, job.unit, piece, start, svd=encoder.svd)
                merged.append(made.truncated_sum(RANK, [1.0] * len(piece)).reshape(piece.shape[1:]))
            encoder.put(job, origin + job.unit.join(merged), start)

    encoder.each(work, rows, factoring=True)
