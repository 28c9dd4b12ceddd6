"""First passes: what a method wants to know of the whole model before it merges the first tensor."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor

from taskmerge.errors import located
from taskmerge.merging.kernels import BoundPoint
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.run import Run
from taskmerge.numerics.selection import Scan, part_of

R = TypeVar("R")


def scan_of(run: Run, point: BoundPoint, index: int) -> Scan:
    """One pass over all float tensors, as the transforms before method `index` of the chain leave them."""
    jobs = [job for job in run.plan.jobs if job.action == "merge" and job.numel]

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        def look(job: TensorJob) -> list[R]:
            results = []
            for start, count in job.slices():
                if job.reads == "elements":  # nothing needs the rest of the slice
                    count = -(-count // share)
                _, rows = run.rows.of(job.unit, start, count, tallied=False)
                shape = (count,) if job.reads == "elements" else job.unit.portion
                with located(f"`{job.name}`"):
                    left = point.transform(rows.view(len(rows), *shape), run.handed(job, start, shape), index)
                flat = left.reshape(len(left), -1)
                results.append(f(flat if job.reads == "elements" else part_of(flat, share)))
            return results

        for results in run.parallel(jobs, look):
            yield from results

    return scan
