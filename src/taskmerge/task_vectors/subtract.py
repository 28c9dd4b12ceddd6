"""One tensor of `vectors` from bytes to bytes: subtract, factor, scale, write."""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.experts.factors import PARTS
from taskmerge.merging.gather import common_buffer, gather, raw_bytes
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.run import parallel, slices
from taskmerge.merging.write import check_numbers
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, TaskMatrices, energy_rank
from taskmerge.task_vectors.files import Files, Work


def energy_counts(work: Work) -> dict[str, list[int]]:
    """The number of components that an energy rank means for every task's matrix: a pass of its own."""
    rank, run = work.wanted.rank, work.run
    jobs = [job for job in run.plan.jobs if job.reads == "matrix"]

    def count(job: TensorJob) -> list[int]:
        _, stack = gather(run, job, 0, job.numel, tallied=False)
        found = []
        for matrix in stack.view(len(stack), 1, *job.matrix_shape()):
            found += [energy_rank(s, rank.value if rank else 1.0) for s in TaskMatrices(matrix).singular_values()]
        return found

    return {job.name: found for job, found in zip(jobs, parallel(run, jobs, count), strict=True)}


def subtract(work: Work, files: Files, job: TensorJob) -> None:
    """One job from bytes to bytes."""
    run = work.run
    if job.action == "copy" and run.base is not None:
        raw = raw_bytes(run, run.base, job.name).view(DTYPES[job.outputs[0].dtype])
        for sink in files.tasks.values():
            sink.write(job.name, raw)
    elif job.action == "buffer":
        _buffers(work, files, job)
    elif job.reads == "matrix":
        _matrices(work, files, job)
    else:
        for start, count in slices(job):
            origin, stack = gather(run, job, start, count)
            _write_centre(work, files, job, origin, start)
            for expert, row in zip(run.experts, stack, strict=True):
                _write(work, files, expert.task, job.name, origin, row, start)
    run.progress(job.numel)


def _buffers(work: Work, files: Files, job: TensorJob) -> None:
    """Integer and bool tensors have no differences: every task keeps its own, the centre the common value."""
    run = work.run
    holders = [one if job.name in one.specs or run.base is None else run.base for one in run.experts]
    found = [raw_bytes(run, holder, job.name) for holder in holders]
    dtype = DTYPES[job.outputs[0].dtype]
    for expert, raw in zip(run.experts, found, strict=True):
        files.tasks[expert.task].write(job.name, raw.view(dtype))
    if files.centre is not None:
        common = common_buffer(run, job, holders, found)
        files.centre.write(job.name, common.view(dtype))


def _matrices(work: Work, files: Files, job: TensorJob) -> None:
    """The leading triplets of every task's matrix: written as they are, or multiplied out and applied."""
    run = work.run
    origin, stack = gather(run, job, 0, job.numel)
    _write_centre(work, files, job, origin, 0)
    stack = stack.view(len(stack), *job.matrix_shape())
    for index, factors in enumerate(_factored(work, stack)):
        task = run.experts[index].task
        if work.wanted.apply:
            product = ((factors.u * factors.s) @ factors.vt).reshape(-1)
            _write(work, files, task, job.name, origin, product, 0)
            continue
        files.ranks.setdefault(task, {})[job.name] = len(factors.s)
        for part, values in zip(PARTS, factors, strict=True):
            files.tasks[task].write(job.name + part, _padded(values, files.specs[task][job.name + part].shape))


def _factored(work: Work, stack: Tensor) -> Iterator[Factors]:
    """Every task's triplets in turn; on a GPU all at once, on the CPU one after the other, to hold few."""
    rank = work.wanted.rank or Rank("ratio", 1.0)
    parts = [*stack[:, None]] if stack.is_cpu else [stack]
    for part in parts:
        yield from TaskMatrices(part, svd=work.run.spec.svd).top(rank)


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
