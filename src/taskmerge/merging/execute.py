"""The one loop over tensors: read, merge, cast, write; several tensors at once, the same bytes for any thread count."""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.writer import Sink
from taskmerge.errors import Mismatch, located
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.factors import VectorSource
from taskmerge.experts.low_rank import Subspace, compress, cut_up
from taskmerge.merging.gather import common_buffer, gather, handed_for, precentred, raw_bytes, read_into, scratch_for
from taskmerge.merging.kernels import BoundPoint
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.run import Run, parallel, slices
from taskmerge.merging.scan import scan_of
from taskmerge.merging.write import check_numbers, write
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.memory import return_large_blocks
from taskmerge.numerics.spectral import Factors, TaskMatrices


def execute(run: Run) -> None:
    """Carries the plan out: first passes, then every tensor into the sinks."""
    return_large_blocks()
    with single_threaded(factoring=any(job.reads == "matrix" for job in run.plan.jobs)):
        known: dict[str, object] = {}
        for point in run.points:
            point.first_pass(lambda bound, index: scan_of(run, bound, index), run.weights(), known)
        order = sorted(run.plan.jobs, key=lambda job: (-job.memory, job.name))
        for _ in parallel(run, order, lambda job: _do(run, job)):
            pass
    account_adapters(run)


def account_adapters(run: Run) -> None:
    """Adds adapters to their digests: whole, for each of them means more than the tensors that were read."""
    for expert in run.experts:
        tally = run.tally(expert)
        if isinstance(expert, AdapterSource) and tally is not None:
            expert.adapter.account(tally)


def _do(run: Run, job: TensorJob) -> None:
    """One job from bytes to bytes."""
    if job.action == "copy":
        _copy(run, job)
    elif job.action == "buffer":
        _buffer(run, job)
    else:
        with located(f"`{job.name}`"):
            _merge(run, job)
    run.progress(job.numel)


def _merge(run: Run, job: TensorJob) -> None:
    """One tensor, slice by slice where the method allows it."""
    if job.reads != "elements":
        _whole(run, job)
        return
    for start, count in slices(job):
        _slice(run, job, start, count)


def _slice(run: Run, job: TensorJob, start: int, count: int) -> None:
    """An elementwise merge of `count` elements from `start` on, at every point of the grid."""
    origin, stack = gather(run, job, start, count)
    handed = handed_for(run, job, start, count, (count,))
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = point.merge_stack(stack, handed, job.treatment)
        write(job, sink, merged if run.space == "weight" else origin + merged, start)


def _whole(run: Run, job: TensorJob) -> None:
    """A merge that needs the whole tensor: matrices, row-wise and whole-tensor methods, attention trios."""
    if job.reads == "matrix" and job.treatment == "method":
        packed = _compressed(run, job)
        if packed is not None:
            for _, sink, matrix in packed:
                write(job, sink, matrix, 0)
            return
    origin, stack = gather(run, job, 0, job.numel)
    pieces = _pieces(job, stack.view(len(stack), *job.shape))
    solved = [_factorable(run, job, piece) for piece in pieces]
    for earlier in run.before:
        for piece, ready in zip(pieces, solved, strict=True):
            _merge_piece(run, job, earlier, piece, ready)
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = [_merge_piece(run, job, point, piece, ready) for piece, ready in zip(pieces, solved, strict=True)]
        joined = _joined(job, merged)
        write(job, sink, joined if run.space == "weight" else origin + joined, 0)


def _pieces(job: TensorJob, stack: Tensor) -> list[Tensor]:
    """The stack, or its q, k and v apart."""
    if job.pieces == 1:
        return [stack]
    return [piece.contiguous() for piece in stack.chunk(job.pieces, dim=job.axis + 1)]


def _factorable(run: Run, job: TensorJob, piece: Tensor) -> TaskMatrices | None:
    if job.reads != "matrix" or job.treatment != "method":
        return None
    shape = job.matrix_shape() if job.pieces == 1 else piece.shape[1:]
    return TaskMatrices(piece.reshape(len(piece), *shape), svd=run.spec.svd, given=_given(run, job))


def _given(run: Run, job: TensorJob) -> list[Factors] | None:
    """The triplets that factor files hold, when the method factors those very matrices."""
    recentred = run.space == "centred" and not precentred(run)
    if recentred or job.pieces > 1 or len(job.outputs) > 1 or len(run.points[0].chain) > 1:
        return None
    found = [expert.factors(job.name) for expert in run.experts if isinstance(expert, VectorSource)]
    given = [one for one in found if one is not None]
    return given if len(given) == len(run.experts) else None


def _merge_piece(run: Run, job: TensorJob, point: BoundPoint, piece: Tensor, ready: TaskMatrices | None) -> Tensor:
    handed = handed_for(run, job, 0, piece[0].numel(), tuple(piece.shape[1:]))
    if ready is not None:
        if len(point.chain) > 1:
            ready = TaskMatrices(point.transform(ready.stack, handed), svd=run.spec.svd)
        return point.merge_matrices(ready, handed).reshape(piece.shape[1:])
    return point.merge_stack(piece, handed, job.treatment)


def _compressed(run: Run, job: TensorJob) -> list[tuple[BoundPoint, Sink, Tensor]] | None:
    """The merge inside the common low-rank subspace, when every expert has exact factors that leave it small."""
    if run.base is None or run.space == "weight" or len(run.points[0].chain) > 1 or _given(run, job) is not None:
        return None
    spaces = _subspaces(run, job)
    if spaces is None:
        return None
    origin = scratch_for(run, "rows", job.numel, run.dtype)
    read_into(run, run.base, job, 0, origin, True)
    if run.space == "centred" and not precentred(run):
        origin = origin + _joined(job, [space.expand(centre_(space.cores, run.weights())) for space in spaces])
    matrices = [TaskMatrices(space.cores, full=space.full, svd=run.spec.svd) for space in spaces]
    handed = handed_for(run, job, 0, job.numel, job.shape)
    for earlier in run.before:
        for one in matrices:
            earlier.merge_matrices(one, handed)
    found = []
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = [space.expand(point.merge_matrices(one, handed)) for space, one in zip(spaces, matrices, strict=True)]
        found.append((point, sink, origin + _joined(job, merged)))
    return found


def _subspaces(run: Run, job: TensorJob) -> list[Subspace] | None:
    """The common subspace of each piece of a job (itself, or its q, k and v), or None where one of them has none."""
    parts = [[expert.low_rank(one.name) for one in job.outputs] for expert in run.experts]
    experts = [cut_up(one, job.pieces, job.axis) for one in parts]
    known = [one for one in experts if one is not None]
    if len(known) < len(experts):
        return None
    m, n = job.matrix_shape()
    shape = (m, n // job.pieces) if job.axis else (m // job.pieces, n)
    spaces = [compress(factors, shape, run.dtype) for factors in zip(*known, strict=True)]
    found = [space for space in spaces if space is not None]
    return found if len(found) == len(spaces) else None


def _joined(job: TensorJob, pieces: Sequence[Tensor]) -> Tensor:
    """The pieces of a job as one tensor again, flat."""
    joined = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=job.axis)
    return joined.reshape(-1)


def _copy(run: Run, job: TensorJob) -> None:
    """A tensor that only the base has, cast if asked."""
    if run.base is None:
        raise Mismatch("there is no base to copy from", where=f"`{job.name}`")
    spec = run.base.specs[job.name]
    values = raw_bytes(run, run.base, job.name).view(DTYPES[spec.dtype])
    cast = values.to(DTYPES[job.outputs[0].dtype])
    check_numbers(cast, values, job.name, job.outputs[0].dtype) if job.kind != "buffer" else None
    for sink in run.sinks:
        sink.write(job.name, cast)


def _buffer(run: Run, job: TensorJob) -> None:
    """An integer or bool tensor: equal everywhere, or BatchNorm's counter (the largest), or the first."""
    holders = [expert for expert in run.experts if job.name in expert.specs]
    found = [raw_bytes(run, holder, job.name) for holder in holders]
    chosen = common_buffer(run, job, holders, found)
    for sink in run.sinks:
        sink.write(job.name, chosen.view(DTYPES[job.outputs[0].dtype]).reshape(-1))
