"""The one loop over tensors: read, merge, cast, write; several tensors at once, the same bytes for any thread count."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.writer import Sink
from taskmerge.errors import BadNumber, Mismatch
from taskmerge.merging.adapters import AdapterSource
from taskmerge.merging.factors import VectorSource
from taskmerge.merging.kernels import BoundPoint
from taskmerge.merging.low_rank import Subspace, compress, cut_up
from taskmerge.merging.memory import return_large_blocks
from taskmerge.merging.plan import CHUNK, COUNTER, Plan, TensorJob
from taskmerge.merging.sources import CheckpointSource, Source, Tally, finite
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.selection import Scan, part_of
from taskmerge.numerics.spectral import Factors, TaskMatrices
from taskmerge.seeds import uniform_at
from taskmerge.specs.merge import MergeSpec
from taskmerge.types import Space

R = TypeVar("R")
Progress = Callable[[int], None]


class Stopped(Exception):
    """Another worker failed, or the user interrupted: give up at the next slice."""


@dataclass
class Run:
    """One merge under way: what it reads, how it computes, where it writes."""

    spec: MergeSpec
    plan: Plan
    base: Source | None
    experts: Sequence[Source]
    points: Sequence[BoundPoint]
    sinks: Sequence[Sink]
    device: torch.device
    tallies: Mapping[int, Tally]  # by identity: two sources may read one file
    progress: Progress
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


def execute(run: Run) -> None:
    """Carries the plan out: first passes, then every tensor into the sinks."""
    return_large_blocks()
    with single_threaded(factoring=any(job.reads == "matrix" for job in run.plan.jobs)):
        known: dict[str, object] = {}
        for point in run.points:
            point.first_pass(lambda bound, index: _scan(run, bound, index), run.weights(), known)
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


def parallel(run: Run, jobs: Sequence[TensorJob], work: Callable[[TensorJob], R]) -> Iterator[R]:
    """`work` over all jobs on the run's workers, within the plan's memory; results in the order of `jobs`."""
    waiting = dict(enumerate(jobs))
    flying: dict[Future[R], tuple[int, int]] = {}
    ready: dict[int, Future[R]] = {}
    due = 0
    with ThreadPoolExecutor(run.plan.workers, thread_name_prefix="merge") as pool:
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


def _do(run: Run, job: TensorJob) -> None:
    """One job from bytes to bytes."""
    if job.action == "copy":
        _copy(run, job)
    elif job.action == "buffer":
        _buffer(run, job)
    elif job.reads == "elements":
        for start in range(0, max(job.numel, 1), CHUNK):
            _slice(run, job, start, min(CHUNK, job.numel - start))
    else:
        _whole(run, job)
    run.progress(job.numel)


# --- reading ---------------------------------------------------------------------------------------------------


def _buffer_for(run: Run, key: str, count: int, dtype: torch.dtype) -> Tensor:
    """Scratch memory of this worker: kept between jobs, so that pages are touched once."""
    held: Tensor | None = getattr(run.scratch, key, None)
    size = count * dtype.itemsize
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8)
        setattr(run.scratch, key, held)
    return held[:size].view(dtype)


def _read(run: Run, source: Source, job: TensorJob, start: int, out: Tensor, tallied: bool) -> None:
    """Elements of a job's (joined) tensor from one source; what it lacks counts as the base's."""
    if run.stop.is_set():
        raise Stopped
    offset = 0
    for output in job.outputs:
        size = _numel(output.shape)
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
        raw = _buffer_for(run, "raw", (high - low) * 8, torch.uint8)
        origin.read(
            output.name, low - (offset - size), part, raw, run.tally(origin) if tallied and origin is source else None
        )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def gather(run: Run, job: TensorJob, start: int, count: int, tallied: bool = True) -> tuple[Tensor, Tensor]:
    """(origin, stack [T, count]) in the compute dtype: what the result is added to, and the rows in the method's space.

    `origin` is [count], or 0-D zero where nothing is added. Both are this worker's scratch memory.
    """
    tasks = len(run.experts)
    base = run.base if run.space == "delta" or any(expert.kind != "weight" for expert in run.experts) else None
    held = tasks + (base is not None)
    rows = _buffer_for(run, "rows", held * count, run.dtype).view(held, count)
    stack, origin = rows[:tasks], rows[tasks] if base is not None else rows.new_zeros(())
    if base is not None:
        _read(run, base, job, start, origin, tallied)
    for expert, row in zip(run.experts, stack, strict=True):
        _read(run, expert, job, start, row, tallied)
        if run.space == "weight" and expert.kind != "weight":
            row.add_(origin)
        elif run.space != "weight" and base is not None and expert.kind == "weight":
            row.sub_(origin)
    stack, origin = _on_device(run, stack), _on_device(run, origin)
    if run.space == "centred" and not _precentred(run):
        origin = centre_(stack, run.weights()).add_(origin)
    return origin, stack


def _precentred(run: Run) -> bool:
    return all(expert.kind == "centred" for expert in run.experts)


def _on_device(run: Run, tensor: Tensor) -> Tensor:
    return tensor if run.device.type == "cpu" else tensor.to(run.device)


# --- merging ---------------------------------------------------------------------------------------------------


def _handed(run: Run, job: TensorJob, start: int, count: int, shape: tuple[int, ...]) -> dict[str, object]:
    """What kernels are handed by name; `uniform_of` draws one task's row."""

    def uniform_of(task: int) -> Tensor:
        drawn = uniform_at(run.spec.seed, run.experts[task].task, job.name, start, count)
        return _on_device(run, drawn.view(1, *shape))

    def uniform() -> Tensor:
        return torch.cat([uniform_of(task) for task in range(len(run.experts))])

    return {"weights": run.weights(), "uniform": uniform, "uniform_of": uniform_of, "position": job.position}


def _slice(run: Run, job: TensorJob, start: int, count: int) -> None:
    """An elementwise merge of `count` elements from `start` on, at every point of the grid."""
    origin, stack = gather(run, job, start, count)
    handed = _handed(run, job, start, count, (count,))
    for point, sink in zip(run.points, run.sinks, strict=True):
        merged = point.merge_stack(stack, handed, job.treatment)
        _write(run, job, sink, merged if run.space == "weight" else origin + merged, start)


def _whole(run: Run, job: TensorJob) -> None:
    """A merge that needs the whole tensor: matrices, row-wise and whole-tensor methods, attention trios."""
    if job.reads == "matrix" and job.treatment == "method":
        packed = _compressed(run, job)
        if packed is not None:
            for _, sink, matrix in packed:
                _write(run, job, sink, matrix, 0)
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
        _write(run, job, sink, joined if run.space == "weight" else origin + joined, 0)


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
    recentred = run.space == "centred" and not _precentred(run)
    if recentred or job.pieces > 1 or len(job.outputs) > 1 or len(run.points[0].chain) > 1:
        return None
    found = [expert.factors(job.name) for expert in run.experts if isinstance(expert, VectorSource)]
    given = [one for one in found if one is not None]
    return given if len(given) == len(run.experts) else None


def _merge_piece(run: Run, job: TensorJob, point: BoundPoint, piece: Tensor, ready: TaskMatrices | None) -> Tensor:
    handed = _handed(run, job, 0, piece[0].numel(), tuple(piece.shape[1:]))
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
    origin = _buffer_for(run, "rows", job.numel, run.dtype)
    _read(run, run.base, job, 0, origin, True)
    if run.space == "centred" and not _precentred(run):
        origin = origin + _joined(job, [space.expand(centre_(space.cores, run.weights())) for space in spaces])
    matrices = [TaskMatrices(space.cores, full=space.full, svd=run.spec.svd) for space in spaces]
    handed = _handed(run, job, 0, job.numel, job.shape)
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


# --- first pass ------------------------------------------------------------------------------------------------


def _scan(run: Run, point: BoundPoint, index: int) -> Scan:
    """One pass over all float tensors, as the transforms before method `index` of the chain leave them."""
    jobs = [job for job in run.plan.jobs if job.action == "merge"]

    def slices(job: TensorJob) -> Iterator[tuple[int, int]]:
        step = CHUNK if job.reads == "elements" else job.numel
        for start in range(0, job.numel, max(step, 1)):
            yield start, min(step, job.numel - start)

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        def look(job: TensorJob) -> list[R]:
            found = []
            for start, count in slices(job):
                if job.reads == "elements":  # nothing needs the rest of the slice
                    count = -(-count // share)
                _, stack = gather(run, job, start, count, tallied=False)
                shape = (count,) if job.reads == "elements" else job.shape
                handed = _handed(run, job, start, count, shape)
                left = point.transform(stack.view(len(stack), *shape), handed, index)
                flat = left.reshape(len(left), -1)
                found.append(f(flat if job.reads == "elements" else part_of(flat, share)))
            return found

        for results in parallel(run, jobs, look):
            yield from results

    return scan


# --- writing ---------------------------------------------------------------------------------------------------


def _write(run: Run, job: TensorJob, sink: Sink, merged: Tensor, start: int) -> None:
    """Casts once, checks the numbers, and writes elements from `start` on of a job's (joined) tensor."""
    merged = merged.cpu()
    offset = 0
    for output in job.outputs:
        size = _numel(output.shape)
        low, high = max(start, offset), min(start + len(merged), offset + size)
        if low < high:
            part = merged[low - start : high - start]
            cast = part.to(DTYPES[output.dtype])
            check_numbers(cast, part, output.name, output.dtype)
            sink.write(output.name, cast.contiguous(), low - offset)
        offset += size


def check_numbers(cast: Tensor, part: Tensor, name: str, code: str) -> None:
    """Refuses NaN, infinity and overflow in a result."""
    if finite(cast if cast.element_size() > 1 else cast.float()):
        return
    if finite(part):
        largest = float(part.abs().max())
        raise BadNumber(
            f"the merged tensor overflows {code}: its largest magnitude is {largest:.4g}", where=f"`{name}`",
            hint="write a wider type, such as `--dtype bfloat16` or `--dtype float32`, or use a smaller coefficient",
        )  # fmt: skip
    raise BadNumber(
        "the merged tensor holds NaN or infinity",
        where=f"`{name}`",
        hint="use smaller coefficients or `--compute-dtype float64`",
    )


def raw_bytes(run: Run, source: Source, name: str) -> Tensor:
    """A tensor's raw bytes; an adapter leaves them as they are in its base."""
    holder = source.base if isinstance(source, AdapterSource) else source
    if not isinstance(holder, CheckpointSource):
        raise Mismatch(f"`{name}` is no tensor of a checkpoint", where=source.where)
    raw = torch.empty(holder.specs[name].nbytes, dtype=torch.uint8)
    holder.read_bytes(name, 0, raw, run.tally(source) if holder is source else None)
    return raw


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
