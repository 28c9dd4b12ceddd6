"""The one loop over tensors: read, merge, cast, write; several tensors at once, the same bytes for any thread count."""

from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import Mismatch, located
from taskmerge.experts.buffers import common_buffer
from taskmerge.experts.low_rank import subspaces
from taskmerge.experts.matrices import given_factors, task_matrices
from taskmerge.experts.rows import Rows
from taskmerge.merging.kernels import BoundPoint, Handed
from taskmerge.merging.plan import TensorJob, Treatment
from taskmerge.merging.run import Run
from taskmerge.merging.scan import scan_of
from taskmerge.merging.write import check_numbers, write
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.memory import return_large_blocks
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.specs.merge import OnBuffer


def execute(run: Run) -> None:
    """Carries the plan out: first passes, then every tensor into the sinks."""
    return_large_blocks()
    with single_threaded(factoring=any(job.reads == "matrix" for job in run.plan.jobs)):
        statistics: dict[str, object] = {}
        for point in run.points:
            point.first_pass(lambda bound, index: scan_of(run, bound, index), run.rows.weights, statistics)
        order = sorted(run.plan.jobs, key=lambda job: (-job.memory, job.name))
        for _ in run.parallel(order, lambda job: _do(run, job)):
            pass
    run.rows.account()


def _do(run: Run, job: TensorJob) -> None:
    """One job from bytes to bytes."""
    if job.action in ("copy", "keep"):
        _copy(run, job)
    elif job.action == "buffer":
        _buffer(run, job)
    else:
        with located(f"`{job.name}`"):
            _merge(run, job)
    run.progress(job.numel)


def _merge(run: Run, job: TensorJob) -> None:
    """One tensor, slice by slice or portion by portion."""
    for start, count in job.slices():
        if job.reads == "elements":
            _slice(run, job, start, count)
        elif not (job.factored and _low_rank(run, job, start, count)):
            _portion(run, job, start, count)


def _slice(run: Run, job: TensorJob, start: int, count: int) -> None:
    """An elementwise merge of `count` elements from `start` on, at every point of the grid."""
    origin, rows = run.rows.of(job.unit, start, count)
    handed = run.handed(job, start, (count,))
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = point.merge_stack(rows, handed, job.treatment)
        write(job, sink, _added(run, origin, merged), start)


def _portion(run: Run, job: TensorJob, start: int, count: int) -> None:
    """A merge that needs a portion whole: matrices, row-wise and whole-tensor methods, attention trios."""
    origin, rows = run.rows.of(job.unit, start, count)
    pieces = job.unit.cut(rows)
    solved = [_factorable(run, job, piece, start) for piece in pieces]

    def merged(point: BoundPoint) -> list[Tensor]:
        both = enumerate(zip(pieces, solved, strict=True))
        return [
            _merge_piece(run, point, piece, ready, run.handed(job, start, tuple(piece.shape[1:]), index), job.treatment)
            for index, (piece, ready) in both
        ]

    for earlier in run.before:
        merged(earlier)
    for point, sink in zip(run.points, run.sinks, strict=True):
        write(job, sink, _added(run, origin, job.unit.join(merged(point))), start)


def _added(run: Run, origin: Tensor, merged: Tensor) -> Tensor:
    """A merged task vector on its origin; merged weights as they are."""
    return merged if run.rows.space == "weight" else origin + merged


def _factorable(run: Run, job: TensorJob, piece: Tensor, start: int) -> TaskMatrices | None:
    """The task matrices of a piece, where they are factored."""
    if not job.factored:
        return None
    return task_matrices(run.rows, job.unit, piece, start, svd=run.spec.svd, chained=len(run.points[0].chain) > 1)


def _merge_piece(
    run: Run, point: BoundPoint, piece: Tensor, ready: TaskMatrices | None, handed: Handed, treatment: Treatment
) -> Tensor:
    """One piece of a portion, merged at one point of the grid."""
    if ready is None:
        return point.merge_stack(piece, handed, treatment)
    if len(point.chain) > 1:
        ready = TaskMatrices(point.transform(ready.stack, handed), svd=run.spec.svd)
    return point.merge_matrices(ready, handed).reshape(piece.shape[1:])


# --- exactly low-rank experts ----------------------------------------------------------------------------------


def _low_rank(run: Run, job: TensorJob, start: int, count: int) -> bool:
    """The merge inside the common low-rank subspace, if every expert has exact factors that leave it small."""
    rows = run.rows
    if rows.base is None or rows.space == "weight" or len(run.points[0].chain) > 1 or run.spec.learned is not None:
        return False  # what was learnt was learnt of the whole matrices' components
    if given_factors(rows, job.unit, start) is not None:
        return False
    spaces = subspaces(rows.experts, job.unit, start, rows.dtype)
    if spaces is None:
        return False
    origin = rows.base_of(job.unit, start, count)
    if rows.recentred:
        origin = origin + job.unit.join([space.expand(centre_(space.cores, rows.weights)) for space in spaces])
    matrices = [TaskMatrices(space.cores, full=space.full, svd=run.spec.svd) for space in spaces]
    handed = run.handed(job, start, job.unit.portion)
    for earlier in run.before:
        for cores in matrices:
            earlier.merge_matrices(cores, handed)
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = [
            space.expand(point.merge_matrices(cores, handed)) for space, cores in zip(spaces, matrices, strict=True)
        ]
        write(job, sink, origin + job.unit.join(merged), start)
    return True


# --- tensors that are not merged -------------------------------------------------------------------------------


def _copy(run: Run, job: TensorJob) -> None:
    """A tensor of one input, cast if asked."""
    holder = job.holder(run.rows.base, run.rows.experts)
    if holder is None:
        raise Mismatch("there is no base to copy from", where=f"`{job.name}`")
    code = job.outputs[0].dtype
    values = run.rows.raw(holder, job.name).view(DTYPES[holder.specs[job.name].dtype])
    cast = values.to(DTYPES[code])
    if job.unit.kind != "buffer":
        check_numbers(cast, values, job.name, code)
    for sink in run.sinks:
        sink.write(job.name, cast)


def _buffer(run: Run, job: TensorJob) -> None:
    """An integer or bool tensor: equal everywhere, or BatchNorm's counter (the largest), or the first."""
    chosen = merged_buffer(run.rows, job, run.spec.on_buffer)
    for sink in run.sinks:
        sink.write(job.name, chosen.view(DTYPES[job.outputs[0].dtype]).reshape(-1))


def merged_buffer(rows: Rows, job: TensorJob, rule: OnBuffer) -> Tensor:
    """The bytes of a merged integer or bool tensor; `Mismatch` where the experts' differ and no rule decides."""
    holders = [expert for expert in rows.experts if job.name in expert.specs]
    values = [rows.raw(holder, job.name) for holder in holders]
    return common_buffer(job.name, job.outputs[0].dtype, holders, values, rule, keeps=True)
