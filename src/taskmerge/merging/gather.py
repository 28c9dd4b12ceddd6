"""What a job reads: tensors of all sources in the compute dtype, or their raw bytes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import Mismatch
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.sources import CheckpointSource, Source
from taskmerge.merging.plan import COUNTER, TensorJob
from taskmerge.merging.run import Run, Stopped
from taskmerge.numerics.centre import centre_
from taskmerge.seeds import uniform_at


def gather(run: Run, job: TensorJob, start: int, count: int, tallied: bool = True) -> tuple[Tensor, Tensor]:
    """(origin, stack [T, count]) in the compute dtype: what the result is added to, and the rows in the method's space.

    `origin` is [count], or 0-D zero where nothing is added. Both are this worker's scratch memory.
    """
    tasks = len(run.experts)
    base = run.base if run.space == "delta" or any(expert.kind != "weight" for expert in run.experts) else None
    held = tasks + (base is not None)
    rows = scratch_for(run, "rows", held * count, run.dtype).view(held, count)
    stack, origin = rows[:tasks], rows[tasks] if base is not None else rows.new_zeros(())
    if base is not None:
        read_into(run, base, job, start, origin, tallied)
    for expert, row in zip(run.experts, stack, strict=True):
        read_into(run, expert, job, start, row, tallied)
        if run.space == "weight" and expert.kind != "weight":
            row.add_(origin)
        elif run.space != "weight" and base is not None and expert.kind == "weight":
            row.sub_(origin)
    stack, origin = on_device(run, stack), on_device(run, origin)
    if run.space == "centred" and not precentred(run):
        origin = centre_(stack, run.weights()).add_(origin)
    return origin, stack


def scratch_for(run: Run, key: str, count: int, dtype: torch.dtype) -> Tensor:
    """Scratch memory of this worker: kept between jobs, so that pages are touched once."""
    held: Tensor | None = getattr(run.scratch, key, None)
    size = count * dtype.itemsize
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8)
        setattr(run.scratch, key, held)
    return held[:size].view(dtype)


def read_into(run: Run, source: Source, job: TensorJob, start: int, out: Tensor, tallied: bool) -> None:
    """Elements of a job's (joined) tensor from one source; what it lacks counts as the base's."""
    if run.stop.is_set():
        raise Stopped
    offset = 0
    for output in job.outputs:
        size = math.prod(output.shape)
        low, high = max(start, offset), min(start + len(out), offset + size)
        offset += size
        if low >= high and not (size == 0 and len(job.outputs) == 1):
            continue
        part = out[low - start : high - start]
        if output.name not in source.specs and source.kind != "weight":
            part.zero_()  # a task vector that lacks a tensor leaves it unchanged
            continue
        origin = source if output.name in source.specs else run.base
        if origin is None:
            raise Mismatch(f"no input holds `{output.name}`")
        raw = scratch_for(run, "raw", (high - low) * 8, torch.uint8)
        origin.read(
            output.name, low - (offset - size), part, raw, run.tally(origin) if tallied and origin is source else None
        )


def precentred(run: Run) -> bool:
    """Whether the experts are centred task vectors already."""
    return all(expert.kind == "centred" for expert in run.experts)


def on_device(run: Run, tensor: Tensor) -> Tensor:
    """The tensor where the run computes."""
    return tensor if run.device.type == "cpu" else tensor.to(run.device)


def raw_bytes(run: Run, source: Source, name: str) -> Tensor:
    """A tensor's raw bytes; an adapter leaves them as they are in its base."""
    holder = source.base if isinstance(source, AdapterSource) else source
    if not isinstance(holder, CheckpointSource):
        raise Mismatch(f"`{name}` is no tensor of a checkpoint", where=source.where)
    raw = torch.empty(holder.specs[name].nbytes, dtype=torch.uint8)
    holder.read_bytes(name, 0, raw, run.tally(source) if holder is source else None)
    return raw


def common_buffer(run: Run, job: TensorJob, holders: Sequence[Source], found: Sequence[Tensor]) -> Tensor:
    """The one value (as bytes) of an integer or bool tensor that several experts hold."""
    chosen = found[0]
    if any(not torch.equal(raw, chosen) for raw in found[1:]):
        dtype = DTYPES[job.outputs[0].dtype]
        if job.name.split(".")[-1] == COUNTER:
            chosen = torch.stack([raw.view(dtype) for raw in found]).amax(0).view(torch.uint8)
        elif run.spec.on_buffer != "first":
            odd = next(index for index, raw in enumerate(found) if not torch.equal(raw, chosen))
            raise Mismatch(
                f"the integer tensor differs between {holders[0].where} and {holders[odd].where}",
                where=f"`{job.name}`",
                hint="`--on-buffer first` takes the first expert's, `--exclude` leaves it out",
            )  # fmt: skip
    return chosen


def handed_for(run: Run, job: TensorJob, start: int, count: int, shape: tuple[int, ...]) -> dict[str, object]:
    """What kernels are handed by name; `uniform_of` draws one task's row."""

    def uniform_of(task: int) -> Tensor:
        drawn = uniform_at(run.spec.seed, run.experts[task].task, job.name, start, count)
        return on_device(run, drawn.view(1, *shape))

    def uniform() -> Tensor:
        return torch.cat([uniform_of(task) for task in range(len(run.experts))])

    return {"weights": run.weights(), "uniform": uniform, "uniform_of": uniform_of, "position": job.position}
