"""Headers and a spec become a plan: every tensor accounted for, the costs known before a byte of weight is read."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.dtypes import CODES, DTYPES, is_float, itemsize
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.errors import Mismatch, NotEnough, UsageError, listed, unknown_name
from taskmerge.experts.classes import Attention, attention_groups, classify, depths, position
from taskmerge.experts.compare import Agreed, agree, dtypes_of
from taskmerge.experts.factors import restrictions
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import matrix_shape
from taskmerge.merging.kernels import BoundPoint
from taskmerge.methods.contract import Method, Reads
from taskmerge.methods.registry import DEFAULT
from taskmerge.numerics.rank import Rank
from taskmerge.specs.merge import WIDENING, MergeSpec
from taskmerge.types import TensorClass

CHUNK = 1 << 18  # elements of one slice: larger ones leave the caches, smaller ones pay for Python
ALLOWANCE = 697_000_000  # bytes of the promise "700 MB + (T + 4) largest tensors" that the plan may fill
GROWTH = 120 << 20  # bytes of library code that the first factorisations page in, and of kept heaps
LITTLE = 0.3  # share of the parameters below which a spectral method says how little it treats
COUNTER = "num_batches_tracked"  # of BatchNorm: the experts' differ by how long they were trained
Treatment = Literal["method", "elsewhere", "origin"]


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor, or one q, k, v trio that is merged as one matrix, and what happens to it."""

    outputs: tuple[OutputSpec, ...]
    action: Literal["merge", "buffer", "copy"]
    kind: TensorClass
    shape: tuple[int, ...]
    treatment: Treatment = "origin"
    reads: Reads = "elements"
    pieces: int = 1
    axis: int = 0
    position: tuple[int, int] | None = None
    memory: int = 0

    @property
    def name(self) -> str:
        return self.outputs[0].name

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def matrix_shape(self) -> tuple[int, int]:
        """The shape as a matrix: [out, in·kh·kw] for kernels, [rows, features] for tables."""
        return matrix_shape(self.kind, self.shape)


@dataclass(frozen=True)
class Plan:
    """What a merge will do: jobs in canonical order, costs, notes and warnings."""

    jobs: tuple[TensorJob, ...]
    tasks: tuple[str, ...]
    heads: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    workers: int
    bytes_read: int
    bytes_written: int
    in_flight: int
    memory: int
    seconds: float

    def classes(self) -> list[tuple[TensorClass, int, int, str]]:
        """(class, tensors, parameters, treatment) for the table of --dry-run."""
        tensors: Counter[tuple[TensorClass, str]] = Counter()
        numbers: Counter[tuple[TensorClass, str]] = Counter()
        for job in self.jobs:
            key = (job.kind, job.treatment if job.action == "merge" else job.action)
            tensors[key] += len(job.outputs)
            numbers[key] += job.numel
        return [(kind, count, numbers[kind, how], how) for (kind, how), count in sorted(tensors.items())]

    def outputs(self) -> list[OutputSpec]:
        return [output for job in self.jobs for output in job.outputs]


def make_plan(
    spec: MergeSpec,
    base: Source | None,
    experts: Sequence[Source],
    *,
    workers: int,
    points: Sequence[BoundPoint],
    max_memory: int | None = None,
    resident: int = 0,
    peak: int = 0,
) -> Plan:
    """Compares headers and lays out all work, or raises what stands in the way. Reads nothing.

    `resident` is the memory in bytes that the process holds before the first tensor is read, `peak` the most that it
    held so far.
    """
    chain = spec.chain()
    _check_tasks(spec, chain, experts)
    needs_base = any(one.space == "delta" for one in chain)
    if needs_base and base is None:
        raise UsageError(
            f"`{next(one.name for one in chain if one.space == 'delta')}` works on differences from the base",
            where="--base", hint="name the checkpoint that the experts were fine-tuned from: `--base FILE`",
        )  # fmt: skip
    needs_base = needs_base or any(expert.kind != "weight" for expert in experts)
    agreed = agree(spec, base, experts, needs_base)
    jobs = _jobs(spec, chain, base, experts, agreed, points)
    _refuse_nothing(jobs, chain[-1])
    notes = [*agreed.notes, *_notes(spec, chain, experts, agreed, jobs, points)]
    reading = base if needs_base or agreed.copied else None
    return costed(
        jobs,
        len(points),
        experts,
        reading,
        agreed,
        tuple(notes),
        workers,
        max_memory,
        resident + GROWTH,
        peak,
        double=spec.compute_dtype == "float64",
    )


def _check_tasks(spec: MergeSpec, chain: Sequence[Method], experts: Sequence[Source]) -> None:
    """Number and names of tasks against the method and the weights."""
    tasks = [expert.task for expert in experts]
    for task in spec.weights:
        if task not in tasks:
            raise unknown_name("task", task, tasks, where="--weight")
    last = chain[-1]
    low, high = last.tasks
    if len(tasks) < low or (high is not None and len(tasks) > high):
        wanted = f"exactly {low}" if low == high else f"at least {low}"
        raise UsageError(
            f"`{last.name}` merges {wanted} experts, not {len(tasks)} ({', '.join(tasks)})", where="--method",
            hint=f"give as many inputs, or choose a method that takes any number, such as {DEFAULT}",
        )  # fmt: skip
    if spec.weights and not any(one.weighted for one in chain):
        raise UsageError(
            f"`{last.name}` takes no weights", where="--weight", hint="`taskmerge methods NAME` says which method does"
        )
    if last.weighted and last.space != "delta":
        total = sum(given := [spec.weights.get(task, 1.0) for task in tasks])
        if abs(total) <= 1e-6 * sum(map(abs, given)):
            raise UsageError(
                f"the weights sum to {total:g}: there is no weighted mean", where="--weight",
                hint=f"`{last.name}` divides by their sum: give weights that don't cancel",
            )  # fmt: skip


def _jobs(
    spec: MergeSpec, chain: Sequence[Method], base: Source | None, experts: Sequence[Source], agreed: Agreed,
    points: Sequence[BoundPoint],
) -> list[TensorJob]:  # fmt: skip
    """One job a tensor (or attention trio), in canonical order."""
    specs = {name: next(one.specs[name] for one in experts if name in one.specs) for name in agreed.names}
    towers = depths(specs)
    reads = _granularity(points)
    groups = attention_groups({name: one.shape for name, one in specs.items() if is_float(one.dtype)})
    jobs: list[TensorJob] = []
    done: set[str] = set()
    for name in agreed.names:
        if name in done:
            continue
        outputs, shape, pieces, axis = _grouped(spec, groups.get(name), specs, name, experts, reads)
        done.update(output.name for output in outputs)
        jobs.append(_job(spec, chain[-1], outputs, shape, pieces, axis, specs[name], position(name, towers), reads))
    for name in agreed.copied:
        if base is not None:
            one = base.specs[name]
            kind = classify(name, one.shape, is_float(one.dtype))
            jobs.append(TensorJob((OutputSpec(name, _out_dtype(spec, one.dtype), one.shape),), "copy", kind, one.shape))
    return sorted(jobs, key=lambda job: job.name)


def _granularity(points: Sequence[BoundPoint]) -> Reads:
    """What the chain reads at a time: the coarsest of its members at any point of the grid."""
    order: tuple[Reads, ...] = ("elements", "tensor", "matrix")
    found = {
        one.granularity(options) for point in points for one, options in zip(point.chain, point.options, strict=True)
    }
    return max(found, key=order.index)


def _grouped(
    spec: MergeSpec, group: Attention | None, specs: Mapping[str, TensorSpec], name: str, experts: Sequence[Source],
    reads: Reads,
) -> tuple[tuple[OutputSpec, ...], tuple[int, ...], int, int]:  # fmt: skip
    """The outputs of the job that holds `name`, its joined shape, into how many pieces it is cut, along which axis."""
    whole = reads != "elements" and group is not None
    if whole and group is not None and len(group.parts) == 3 and spec.qkv == "fused":
        outputs = tuple(_output(spec, part, specs[part], experts) for part in group.parts)
        shape = (sum(output.shape[0] for output in outputs), *outputs[0].shape[1:])
        return outputs, shape, 1, 0
    output = _output(spec, name, specs[name], experts)
    if whole and group is not None and len(group.parts) == 1 and spec.qkv == "split":
        return (output,), output.shape, 3, group.axis if len(output.shape) > 1 else 0
    return (output,), output.shape, 1, 0


def _output(spec: MergeSpec, name: str, one: TensorSpec, experts: Sequence[Source]) -> OutputSpec:
    """Name, dtype and shape of a merged tensor: the experts' common dtype, or the one that holds them all."""
    codes = list(dtypes_of(name, experts))
    common = DTYPES[codes[0]]
    for code in codes[1:]:
        pair = (
            one if one.itemsize > 1 else torch.float32 for one in (common, DTYPES[code])
        )  # torch promotes no 8-bit type
        common = torch.promote_types(*pair)
    return OutputSpec(name, _out_dtype(spec, CODES[common]), one.shape)


def _out_dtype(spec: MergeSpec, code: str) -> str:
    return spec.dtype if spec.dtype and is_float(code) else code


def _job(
    spec: MergeSpec, last: Method, outputs: tuple[OutputSpec, ...], shape: tuple[int, ...], pieces: int, axis: int,
    one: TensorSpec, where: tuple[int, int] | None, reads: Reads,
) -> TensorJob:  # fmt: skip
    """The job of one tensor: which class it is and what merges it."""
    kind = classify(outputs[0].name, shape, is_float(one.dtype))
    if kind == "buffer":
        return TensorJob(outputs, "buffer", kind, shape)
    job = TensorJob(outputs, "merge", kind, shape, "method", reads, pieces, axis, where)
    if last.granularity(last.defaults()) == "matrix":
        truncated = (kind == "linear" or kind in spec.also) and min(job.matrix_shape()) > 1
        if not truncated:
            treatment: Treatment = "elsewhere" if last.elsewhere else "origin"
            return TensorJob(outputs, "merge", kind, shape, treatment, "elements", 1, 0, where)
    return job


def _refuse_nothing(jobs: Sequence[TensorJob], last: Method) -> None:
    """A merge needs tensors, and a spectral method a matrix to truncate: never silently the average."""
    if not jobs:
        raise Mismatch("there is no tensor to merge", hint="check --include and --exclude")
    spectral = last.granularity(last.defaults()) == "matrix"
    if not spectral or any(job.treatment == "method" and job.action == "merge" for job in jobs):
        return
    there = sorted({job.kind for job in jobs if job.kind in WIDENING and min(job.matrix_shape()) > 1})
    widen = f"widen it to what these models have: `--also {','.join(there)}`, or " if there else ""
    raise Mismatch(
        f"`{last.name}` finds no matrix to truncate: no tensor is of the class `linear`",
        hint=f"{widen}use `--method average`",
    )


def _little(jobs: Sequence[TensorJob], last: Method) -> list[str]:
    """A note where a spectral method truncates a small part of the model: stacked experts, mostly embeddings."""
    merged = [job for job in jobs if job.action == "merge"]
    total, own = sum(job.numel for job in merged), sum(job.numel for job in merged if job.treatment == "method")
    rest = [job for job in merged if job.kind in WIDENING and job.treatment != "method" and min(job.matrix_shape()) > 1]
    if own >= LITTLE * total or not rest:
        return []
    widen = ",".join(sorted({job.kind for job in rest}))
    return [f"`{last.name}` treats {own / total:.0%} of the parameters (`--also {widen}` widens it)"]


def _notes(
    spec: MergeSpec, chain: Sequence[Method], experts: Sequence[Source], agreed: Agreed, jobs: Sequence[TensorJob],
    points: Sequence[BoundPoint],
) -> list[str]:  # fmt: skip
    """What a careful user would want to know about this merge."""
    notes, last = [], chain[-1]
    notes += _little(jobs, last)
    if len(experts) == 1:
        notes.append(
            "only one expert: "
            + ("the result is that expert" if last.space != "delta" else "one task vector is scaled")
        )
    elif len(experts) in last.note_for:
        notes.append(last.note_for[len(experts)])
    mixed = {name: found for name in agreed.names if len(found := dtypes_of(name, experts)) > 1}
    if mixed and not spec.dtype:
        found = next(iter(mixed.values()))
        said = ", ".join(f"{code} in {'/'.join(tasks)}" for code, tasks in found.items())
        notes.append(
            f"{len(mixed)} tensors differ in dtype between experts ({said}) and are promoted (`--dtype` says otherwise)"
        )
    for point in points:
        rank = point.options[-1].get("rank")
        full = [min(job.matrix_shape()) for job in jobs if job.treatment == "method" and job.reads == "matrix"]
        if isinstance(rank, Rank) and rank.kind == "count" and any(rank.value > r for r in full):
            notes.append(
                f"rank {rank} is above the full rank of {sum(rank.value > r for r in full)} matrices, clamped there"
            )
    counters = [job.name for job in jobs if job.action == "buffer" and job.name.split(".")[-1] == COUNTER]
    if counters:
        notes.append(f"the largest value of all experts is taken for {listed(counters)}")
    if agreed.heads:
        notes.append(f"{len(agreed.heads)} tensors are not merged but kept per task: {listed(agreed.heads)}")
    return notes + restrictions(experts, _components(jobs, points))


def _components(jobs: Sequence[TensorJob], points: Sequence[BoundPoint]) -> dict[str, int]:
    """The most components that the method takes of every matrix, at any point of the grid."""
    ranks = [point.options[-1].get("rank") for point in points]
    full = {job.name: min(job.matrix_shape()) for job in jobs if job.treatment == "method" and job.reads == "matrix"}
    counts = [rank for rank in ranks if isinstance(rank, Rank) and rank.kind != "energy"]
    if len(counts) < len(ranks):
        return full
    return {name: max(rank.resolve(side) for rank in counts) for name, side in full.items()}


# --- costs -----------------------------------------------------------------------------------------------------


def costed(
    jobs: Sequence[TensorJob], outputs: int, experts: Sequence[Source], base: Source | None, agreed: Agreed,
    notes: tuple[str, ...], workers: int, max_memory: int | None, resident: int, peak: int, *, double: bool = False,
) -> Plan:  # fmt: skip
    """The plan with memory, traffic and time; `NotEnough` where the promise of --max-memory cannot be kept."""
    item = 8 if double else 4
    jobs = tuple(_with_memory(job, len(experts), item) for job in jobs)
    names = [output.name for job in jobs for output in job.outputs]
    sources = [*experts, *([base] if base else [])]
    read = sum(source.specs[name].nbytes for name in names for source in sources if name in source.specs)
    written = sum(math.prod(o.shape) * itemsize(o.dtype) for job in jobs for o in job.outputs) * outputs
    largest = max(job.memory for job in jobs)
    promised = ALLOWANCE + (len(experts) + 4) * item * max(job.numel for job in jobs)
    in_flight = min(
        sum(sorted((job.memory for job in jobs), reverse=True)[:workers]), max(largest, promised - resident)
    )  # fmt: skip
    if max_memory is not None:
        needed = max(peak, resident + largest)
        if needed > max_memory:
            heaviest = max(jobs, key=lambda job: job.memory)
            raise NotEnough(
                f"this merge needs {needed / 1e6:.0f} MB, --max-memory allows {max_memory / 1e6:.0f} MB",
                where=f"`{heaviest.name}`", hint="allow more, or merge fewer experts at a time",
            )  # fmt: skip
        in_flight = min(in_flight, max_memory - resident)
    seconds = 2.0 + read / 2.5e9 + written / 1e9 + sum(_solving(job) for job in jobs) * len(experts) / workers
    return Plan(
        jobs, tuple(expert.task for expert in experts), agreed.heads, agreed.left_out, notes, workers, read, written,
        in_flight, max(peak, resident + in_flight), seconds,
    )  # fmt: skip


def _with_memory(job: TensorJob, tasks: int, item: int) -> TensorJob:
    """The job with the bytes it holds at its peak, for arithmetic with `item` bytes a number."""
    factored = job.treatment == "method" and job.reads == "matrix"
    slice_ = min(job.numel, 2 * CHUNK) if job.reads == "elements" else job.numel
    memory = (tasks + (6 if factored else 4)) * item * slice_  # factors and their orthonormal forms are two more
    if factored:
        memory += 48 * min(job.matrix_shape()) ** 2  # float64 Gram matrix, eigenvectors, workspace, root
    return replace(job, memory=memory)


def _solving(job: TensorJob) -> float:
    """Seconds of one factorisation on one core: Gram, eigensolver, product."""
    if job.treatment != "method" or job.reads != "matrix":
        return 0.0
    m, n = job.matrix_shape()
    r = min(m, n)
    return (m * n * r + 4 * r**3) / 7e10
