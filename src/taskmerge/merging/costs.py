"""What a plan costs in memory and traffic, and whether that is allowed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from taskmerge.checkpoint.dtypes import itemsize
from taskmerge.errors import NotEnough
from taskmerge.experts.sources import Source
from taskmerge.merging.plan import CHUNK, Costs, TensorJob
from taskmerge.numerics.device import cores
from taskmerge.numerics.memory import peak_memory, resident_memory, settled_memory

ALLOWANCE = 697_000_000  # bytes of the promise "700 MB + (T + 4) largest tensors" that the plan may fill
GROWTH = 120 << 20  # bytes of library code that the first factorisations page in, and of kept heaps


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use: its workers, the limit of --max-memory, and bytes of this process: `resident` while it runs
    without a tensor, `held` when it began, `peak` that it ever held. `keeps`: its results stay in memory."""

    workers: int
    limit: int | None
    resident: int
    held: int
    peak: int
    keeps: bool = False

    def check(self, what: str, heaviest: str, memory: int) -> None:
        """Refuses a limit that one tensor alone exceeds, or that this process exceeds already.

        What it held at some other time, for another's work, is not counted.
        """
        needed = max(self.held, self.resident + memory)
        if self.limit is not None and needed > self.limit:
            raise NotEnough(
                f"{what} needs {needed / 1e6:.0f} MB, --max-memory allows {self.limit / 1e6:.0f} MB",
                where=f"`{heaviest}`", hint="allow more, or take fewer experts at a time",
            )  # fmt: skip


def in_flight(what: str, heaviest: tuple[str, int] | None, allowed: Budget) -> int:
    """The bytes that slices of all inputs may hold at once, where the `heaviest` (a tensor's name, bytes) is one of
    them; `NotEnough` where it is too large for the limit. `what` is the work that needs them."""
    if heaviest is None or allowed.limit is None:
        return allowed.workers * heaviest[1] if heaviest else 0
    allowed.check(what, *heaviest)
    return min(allowed.workers * heaviest[1], allowed.limit - allowed.resident)


def budget(threads: int | None, max_memory: int | None, *, keeps: bool = False) -> Budget:
    """The budget of this process, which gives back what it holds without need."""
    held = resident_memory()
    return Budget(threads or cores(), max_memory, settled_memory() + GROWTH, held, peak_memory(), keeps)


def costed(
    jobs: Sequence[TensorJob], outputs: int, sources: Sequence[Source], tasks: int, allowed: Budget, item: int = 4,
    side_by_side: Mapping[str, int] | None = None,
) -> tuple[tuple[TensorJob, ...], Costs]:  # fmt: skip
    """The jobs with their memory, and the costs of writing them `outputs` times in arithmetic of `item` bytes a number.

    `side_by_side` are matrices of which so many components of every task are held at once. `NotEnough` where the
    promise of --max-memory cannot be kept.
    """
    beside = side_by_side or {}
    jobs = tuple(
        replace(job, memory=_memory(job, tasks, item) + item * tasks * _triplets(job, beside.get(job.name, 0)))
        for job in jobs
    )
    read = sum(
        part.nbytes
        for source in sources
        for job in jobs
        for output in job.outputs
        if output.name in source.specs
        for part in source.specs[output.name].stored
    )
    written = outputs * sum(math.prod(out.shape) * itemsize(out.dtype) for job in jobs for out in job.outputs)
    heaviest = max(jobs, key=lambda job: job.memory)
    if allowed.keeps:
        allowed, written = replace(allowed, resident=allowed.resident + written), 0
    promised = ALLOWANCE + (tasks + 4) * item * max(job.numel for job in jobs)
    held = GROWTH if allowed.keeps else allowed.resident  # the promise is not about what others hold in their process
    in_flight = min(
        sum(sorted((job.memory for job in jobs), reverse=True)[: allowed.workers]),
        max(heaviest.memory, promised - held),
    )
    if allowed.limit is not None:
        allowed.check("this merge", heaviest.name, heaviest.memory)
        in_flight = min(in_flight, allowed.limit - allowed.resident)
    memory = max(allowed.peak, allowed.resident + in_flight)
    return jobs, Costs(allowed.workers, read, written, in_flight, memory)


def _memory(job: TensorJob, tasks: int, item: int) -> int:
    """The bytes that a job holds at its peak."""
    portion = math.prod(job.unit.portion)
    at_once = min(job.numel, 2 * CHUNK) if job.reads == "elements" else portion
    if not job.factored:
        return (tasks + 4) * item * at_once
    # factors and their orthonormal forms are two more; float64 Gram matrix, eigenvectors, workspace, root
    return (tasks + 6) * item * at_once + 48 * min(job.unit.matrix) ** 2


def _triplets(job: TensorJob, components: int) -> int:
    """The numbers that a task's components take side by side: as factored, joined, scaled, and those of them chosen."""
    small, large = sorted(job.unit.matrix)
    return components * (3 * small + 4 * large)
