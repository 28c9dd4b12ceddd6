"""How long a merge will take: from shapes and from what its method says that it takes."""

from collections.abc import Callable, Sequence
from functools import cache

from taskmerge.merging.kernels import BoundPoint
from taskmerge.merging.plan import Costs, TensorJob
from taskmerge.numerics import durations
from taskmerge.numerics.speed import DIGESTED, REFERENCE, Speed, speed

STARTING = 1.5  # seconds until Python has imported what is needed
READ, WRITTEN = 2.0e-10, 1.0e-9  # seconds a byte: out of the page cache, and synced onto a disk
LONG = 2.0  # seconds of one core from which on it is worth while to measure this machine
PRECISE = 2.0  # float64 in place of float32
ON_GPU = 10.0  # times as fast as one core, roughly: nothing is measured there


def seconds_of(
    jobs: Sequence[TensorJob], points: Sequence[BoundPoint], tasks: int, costs: Costs, *, precise: bool, digests: bool,
    gpu: bool = False,
) -> float:  # fmt: skip
    """Seconds of a whole command: to start, to read (first passes too), to compute on its workers, to write.

    `precise`: in float64. Where that is much, a measurement says how fast this machine is.
    """
    shared, longest = _working(jobs, points, tasks, costs, REFERENCE, precise=precise, digests=digests, gpu=gpu)
    if shared > LONG:
        here = speed(factoring=any(job.factored for job in jobs))
        shared, longest = _working(jobs, points, tasks, costs, here, precise=precise, digests=digests, gpu=gpu)
    return STARTING + max(shared / costs.workers, longest) + WRITTEN * costs.bytes_written


def _working(
    jobs: Sequence[TensorJob], points: Sequence[BoundPoint], tasks: int, costs: Costs, here: Speed, *, precise: bool,
    digests: bool, gpu: bool,
) -> tuple[float, float]:  # fmt: skip
    """(seconds of one core, seconds of the longest job, which cannot be shared)."""
    factoring = here.factoring * (PRECISE if precise else 1.0) / (ON_GPU if gpu else 1.0)
    sweep = durations.SWEEP * here.sweeps
    kernels = tasks * sum(method.work.sweeps for point in points for method in point.chain)
    matrix = _of_matrices(points, tasks)
    each = []
    for job in jobs:
        sweeps = kernels if job.treatment == "method" else tasks * len(points)
        if job.action != "merge":
            each.append(sweep * job.numel)
        elif job.factored:
            own = factoring * job.unit.matrices * matrix(*job.unit.matrix)
            each.append(2 * sweep * tasks * job.numel + own)
        else:
            each.append(sweep * sweeps * job.numel)
    passes = 1 + max(_passes(point) for point in points)
    reading = costs.bytes_read * (passes * READ + digests * DIGESTED * here.digests)
    return sum(each) + reading, max(each)


def _passes(point: BoundPoint) -> int:
    """How often first passes read the whole model."""
    return sum(one.first_passes(options) for one, options in zip(point.chain, point.options, strict=True))


def _of_matrices(points: Sequence[BoundPoint], tasks: int) -> Callable[[int, int], float]:
    """Seconds of one core for the tasks' matrices [m, n] at all points of the grid, which share what is costly."""
    shared = [point.shared_by for point in points]
    again = len(points) - len(set(shared))

    @cache
    def seconds(m: int, n: int) -> float:
        found: dict[str, float] = {}
        for key, point in zip(shared, points, strict=True):
            own = point.last.matrix_seconds(m, n, tasks, point.options[-1])
            found[key] = max(own, found.get(key, 0.0))
        return sum(found.values()) + again * durations.product(m, min(m, n), n)

    return seconds
