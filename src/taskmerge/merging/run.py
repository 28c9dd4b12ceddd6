"""One merge under way: what it reads, how it computes, where it writes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from taskmerge.checkpoint.writer import Sink
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.merging.kernels import BoundPoint, Handed, handed
from taskmerge.merging.plan import Plan, TensorJob
from taskmerge.specs.merge import MergeSpec

R = TypeVar("R")
Advance = Callable[[int], None]
"""Called with how many parameters were merged since the last call."""


@dataclass(frozen=True)
class Run:
    """One merge under way; `before` are grid points that are computed first and not written: a replay of one point."""

    spec: MergeSpec
    plan: Plan
    rows: Rows
    points: Sequence[BoundPoint]
    sinks: Sequence[Sink]
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
