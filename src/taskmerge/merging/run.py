"""One merge under way: what it reads, how it computes, where it writes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.merging.kernels import BoundPoint, Handed, handed
from taskmerge.merging.options import RunOptions
from taskmerge.merging.plan import Plan, TensorJob
from taskmerge.specs.merge import MergeSpec

R = TypeVar("R")
Advance = Callable[[int], None]
"""Called with how many parameters were merged since the last call."""


class Takes(Protocol):
    """What merged tensors are written to: a staged output, or what factors them."""

    def write(self, name: str, data: Tensor, start_element: int = 0) -> None:
        """Elements of a tensor from `start_element` on; every element exactly once, from several threads."""


@dataclass(frozen=True)
class Run:
    """One merge under way; `before` are grid points that are computed first and not written: a replay of one point."""

    spec: MergeSpec
    plan: Plan
    rows: Rows
    points: Sequence[BoundPoint]
    sinks: Sequence[Takes]
    progress: Advance
    before: Sequence[BoundPoint] = ()

    def parallel(self, jobs: Sequence[TensorJob], work: Callable[[TensorJob], R]) -> Iterator[R]:
        """`work` over jobs on the run's workers, within the plan's memory; results in the order of `jobs`."""
        costs = self.plan.costs
        return parallel(jobs, work, workers=costs.workers, in_flight=costs.in_flight, stop=self.rows.stop)

    def handed(self, job: TensorJob, start: int, shape: tuple[int, ...], piece: int = 0) -> Handed:
        """What kernels may ask for beside the rows, of the elements of a job from `start` on (of one piece of them),
        seen in `shape`."""
        return handed(self.rows, self.spec, job, start, shape, piece)


def progress_of(plan: Plan, running: RunOptions) -> Callable[[int], None]:
    """Counts merged parameters and tells the caller."""
    total = sum(job.numel for job in plan.jobs)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if running.progress is not None:
            running.progress(done, total)

    return advance
