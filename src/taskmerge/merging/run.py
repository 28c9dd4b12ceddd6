"""One merge under way: what it reads, how it computes, where it writes; its workers and their slices."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from taskmerge.checkpoint.writer import Sink
from taskmerge.experts.sources import Source, Tally
from taskmerge.merging.kernels import BoundPoint
from taskmerge.merging.plan import CHUNK, Plan, TensorJob
from taskmerge.numerics.lapack import settle_thread
from taskmerge.specs.merge import MergeSpec
from taskmerge.types import Space

R = TypeVar("R")
Advance = Callable[[int], None]


class Stopped(Exception):
    """Another worker failed, or the user interrupted: give up at the next slice."""


@dataclass
class Run:
    """One merge under way."""

    spec: MergeSpec
    plan: Plan
    base: Source | None
    experts: Sequence[Source]
    points: Sequence[BoundPoint]
    sinks: Sequence[Sink]
    device: torch.device
    tallies: Mapping[int, Tally]  # by identity: two sources may read one file
    progress: Advance
    before: Sequence[BoundPoint] = ()  # computed first and not written: a replay of one point of a grid
    stop: threading.Event = field(default_factory=threading.Event)
    scratch: threading.local = field(default_factory=threading.local)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.spec.compute_dtype == "float64" else torch.float32

    @property
    def space(self) -> Space:
        return self.points[0].last.space

    def tally(self, source: Source) -> Tally | None:
        return self.tallies.get(id(source))

    def weights(self) -> Tensor:
        given = self.spec.weights
        return torch.tensor([given.get(expert.task, 1.0) for expert in self.experts], dtype=torch.float64)


def slices(job: TensorJob) -> Iterator[tuple[int, int]]:
    """(start, count) of what a job handles at a time: slices where every element is merged by itself, else the whole.

    An empty tensor is one empty slice.
    """
    step = CHUNK if job.reads == "elements" else max(job.numel, 1)
    for start in range(0, max(job.numel, 1), step):
        yield start, min(step, job.numel - start)


def parallel(run: Run, jobs: Sequence[TensorJob], work: Callable[[TensorJob], R]) -> Iterator[R]:
    """`work` over all jobs on the run's workers, within the plan's memory; results in the order of `jobs`."""
    waiting = dict(enumerate(jobs))
    flying: dict[Future[R], tuple[int, int]] = {}
    ready: dict[int, Future[R]] = {}
    due = 0
    with ThreadPoolExecutor(run.plan.workers, thread_name_prefix="merge", initializer=settle_thread) as pool:
        try:
            while waiting or flying:
                while len(flying) < run.plan.workers:
                    room = run.plan.in_flight - sum(memory for _, memory in flying.values())
                    index = next((i for i, job in waiting.items() if not flying or job.memory <= room), None)
                    if index is None:
                        break
                    job = waiting.pop(index)
                    flying[pool.submit(work, job)] = (index, job.memory)
                finished, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=lambda one: flying[one][0]):
                    ready[flying.pop(future)[0]] = future
                while due in ready:
                    yield ready.pop(due).result()
                    due += 1
        except GeneratorExit:
            raise
        except BaseException:
            run.stop.set()
            raise
