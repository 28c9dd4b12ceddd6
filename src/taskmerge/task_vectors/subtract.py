"""One tensor of `vectors` from bytes to bytes: subtract, factor, scale, write."""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.experts.buffers import common_buffer
from taskmerge.experts.factors import PARTS
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.write import check_numbers
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, TaskMatrices, energy_rank
from taskmerge.task_vectors.files import Files, Work


def energy_counts(work: Work) -> dict[str, list[int]]:
    """The number of components that an energy rank means for every task's matrix (of a stack: for the one of its
    experts that needs most): a pass of its own."""
    share = work.wanted.rank.value if work.wanted.rank else 1.0
    jobs = [job for job in work.plan.jobs if job.reads == "matrix"]

    def count(job: TensorJob) -> list[int]:
        needed = []
        for start, size in job.slices():
            _, rows = work.rows.of(job.unit, start, size, tallied=False)
            values = TaskMatrices(rows.view(len(rows), *job.unit.matrix)).singular_values()
            needed.append([energy_rank(s, share) for s in values])
        return [max(column) for column in zip(*needed, strict=True)]

    return {job.name: counts for job, counts in zip(jobs, work.parallel(jobs, count), strict=True)}


def subtract(work: Work, files: Files, job: TensorJob) -> None:
    """One job from bytes to bytes."""
    base = work.rows.base
    if job.action == "copy" and base is not None:
        values = work.rows.raw(base, job.name).view(DTYPES[base.specs[job.name].dtype])
        for sink in files.tasks.values():
            sink.write(job.name, values.to(DTYPES[job.outputs[0].dtype]))
    elif job.action == "buffer":
        _buffers(work, files, job)
    else:
        for start, count in job.slices():
            origin, rows = work.rows.of(job.unit, start, count)
            _write_centre(work, files, job, origin, start)
            if job.reads == "matrix":
                _matrices(work, files, job, origin, rows, start)
                continue
            for expert, row in zip(work.rows.experts, rows, strict=True):
                _write(work, files, expert.task, job.name, origin, row, start)
    work.progress(job.numel)


def _buffers(work: Work, files: Files, job: TensorJob) -> None:
    """Integer and bool tensors have no differences: every task keeps its own, the centre the common value."""
    rows, code = work.rows, job.outputs[0].dtype
    holders = [expert if job.name in expert.specs or rows.base is None else rows.base for expert in rows.experts]
    values = [rows.raw(holder, job.name) for holder in holders]
    for expert, raw in zip(rows.experts, values, strict=True):
        files.tasks[expert.task].write(job.name, raw.view(DTYPES[code]))
    if files.centre is not None:
        common = common_buffer(job.name, code, holders, values, work.on_buffer)
        files.centre.write(job.name, common.view(DTYPES[code]))


def _matrices(work: Work, files: Files, job: TensorJob, origin: Tensor, rows: Tensor, start: int) -> None:
    """The leading triplets of every task's matrix: written as they are, or multiplied out and applied."""
    stack = rows.view(len(rows), *job.unit.matrix)
    for expert, factors in zip(work.rows.experts, _factored(work, stack), strict=True):
        if work.wanted.apply:
            product = ((factors.u * factors.s) @ factors.vt).reshape(-1)
            _write(work, files, expert.task, job.name, origin, product, start)
            continue
        ranks = files.ranks.setdefault(expert.task, {})
        ranks[job.name] = max(ranks.get(job.name, 0), len(factors.s))
        for part, values in zip(PARTS, factors, strict=True):
            shape = files.specs[expert.task][job.name + part].shape
            whole = _padded(values, shape[1:] if job.unit.kind == "stack" else shape)
            place = job.unit.expert_at(start) * whole.numel()
            files.tasks[expert.task].write(job.name + part, whole, place)


def _factored(work: Work, stack: Tensor) -> Iterator[Factors]:
    """Every task's triplets in turn; on a GPU all at once, on the CPU one after the other, to hold few."""
    rank = work.wanted.rank or Rank("ratio", 1.0)
    parts = [*stack[:, None]] if stack.is_cpu else [stack]
    for part in parts:
        yield from TaskMatrices(part, svd=work.svd).top(rank)


def _padded(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The factor in float32, with zeros where the matrix has fewer components than were asked for."""
    whole = torch.zeros(shape)
    whole[tuple(slice(0, side) for side in values.shape)] = values.cpu()
    return whole


def _write(work: Work, files: Files, task: str, name: str, origin: Tensor, row: Tensor, start: int) -> None:
    """Elements of a task vector, or of the checkpoint that it makes of the origin."""
    values = (origin + work.wanted.coefficient * row if work.wanted.apply else row).cpu()
    dtype = files.specs[task][name].dtype
    cast = values.to(DTYPES[dtype])
    check_numbers(cast, values, name, dtype)
    files.tasks[task].write(name, cast, start)


def _write_centre(work: Work, files: Files, job: TensorJob, origin: Tensor, start: int) -> None:
    """Elements of the average."""
    if files.centre is not None:
        cast = origin.cpu().to(DTYPES[work.wanted.centre_dtype])
        check_numbers(cast, cast, job.name, work.wanted.centre_dtype)
        files.digest.update(job.name, cast.view(torch.uint8).reshape(-1))
        files.centre.write(job.name, cast, start)
