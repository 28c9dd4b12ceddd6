"""All subsets of the tasks: average, task arithmetic and CART of each, with means and standard errors by size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
            forms = {"average": running.average, "task_arithmetic": running.task_arithmetic}
            for method in self.methods:

                def measure(method: str = method, names: Sequence[str] = names) -> dict[str, Any]:
                    forms.get(method, lambda: cart(running))()  # noqa: B023  measured before the next subset
                    return {"scores": self.opened.judge.scores(f"{method} of {', '.join(names)}", names)}

                yield _point(method, names), measure

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
        """Goes on to the next subset: one expert comes or goes, and is all that is read."""
        encoder = self.encoder
        sign = 1 if changed in members else -1
        rows = encoder.rows("weight", [encoder.tasks[changed]])

        def work(job: TensorJob) -> None:
            if job.name not in self._sums:
                self._sums[job.name] = torch.zeros(job.numel, dtype=torch.float64, device=encoder.device)
            total = self._sums[job.name]
            for start, count in _slices(job):
                _, (row,) = rows.of(job.unit, start, count, tallied=False)
                total[start : start + count].add_(row, alpha=sign)

        encoder.each(work, rows)
        self.members = tuple(members)

    def average(self) -> None:
        """Puts the mean of the members into the encoder."""
        share = 1 / len(self.members)

        def work(job: TensorJob) -> None:
            for start, count in _slices(job):
                total = self._sums[job.name][start : start + count]
                for own, target, code in self.encoder.targets(job, start, count):
                    torch.mul(total[own], share, out=target)
                    _rounded(target, code)

        self.encoder.each(work, self.encoder.rows("weight"))

    def task_arithmetic(self) -> None:
        """Puts θ₀ + λ Σ (θ_t - θ₀) over the members into the encoder."""
        encoder, size = self.encoder, len(self.members)
        scale, rows = usual_coefficient(size), encoder.rows("delta")

        def work(job: TensorJob) -> None:
            for start, count in _slices(job):
                total = rows.placed(rows.base_of(job.unit, start, count)).double().mul_(1 - scale * size)
                total.add_(self._sums[job.name][start : start + count], alpha=scale)
                for own, target, code in encoder.targets(job, start, count):
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


def _slices(job: TensorJob) -> Iterator[tuple[int, int]]:
    """Pieces of a unit that stay in the cache."""
    size = 1 << 18
    for start in range(0, max(job.numel, 1), size):
        yield start, min(size, job.numel - start)


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
