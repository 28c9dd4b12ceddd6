"""`vectors`: differences of experts from an origin as files, dense or as factors, and back onto the origin."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.writer import lay_out
from taskmerge.errors import Mismatch, UsageError
from taskmerge.experts.arguments import Arguments, State, named
from taskmerge.experts.compare import Agreed, agree, specs_of
from taskmerge.experts.inputs import InputOptions, Inputs, resolve
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.sources import Tally
from taskmerge.experts.tensors import Unit, unit_of, units
from taskmerge.merging.costs import budget, costed
from taskmerge.merging.options import RunOptions, split_options
from taskmerge.merging.outputs import check_disk, check_free, check_kept, files_read
from taskmerge.merging.plan import Plan, TensorJob
from taskmerge.merging.run import progress_of
from taskmerge.merging.travel import DIFFERS, clashing
from taskmerge.numerics.device import named_device
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.memory import peak_memory, return_large_blocks
from taskmerge.numerics.rank import Rank
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names, Size
from taskmerge.specs.merge import MergeSpec, OnBuffer, OnMissing, Svd, dtype_code
from taskmerge.task_vectors.files import (
    CENTRE,
    ENDINGS,
    VectorOutput,
    Wanted,
    Work,
    committed,
    expert_digests,
    origin_of,
    staged,
)  # fmt: skip
from taskmerge.task_vectors.subtract import energy_counts, subtract
from taskmerge.types import Space

OWN = frozenset({"inputs", "centre", "rank", "apply", "coefficient", "dtype"})
"""Keywords of `vectors` that a merge has not, or means otherwise."""


@dataclass(frozen=True)
class VectorsReceipt:
    """What `vectors` wrote, about which origin, and at what cost. `ranks`: components of every matrix, by task."""

    outputs: tuple[VectorOutput, ...]
    origin: Literal["base", "centre"]
    origin_digest: str
    experts: Mapping[str, str]
    rank: str | None
    ranks: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    peak_memory: int
    seconds: float

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(output.path for output in self.outputs)

    def to_dict(self) -> dict[str, object]:
        """The receipt as plain values, for --json."""
        return asdict(self)


def vectors(
    inputs: Arguments, *, base: str | Path | State | None = None, output: Location = None, centre: bool = False,
    rank: str | float | Rank | None = None, apply: bool = False, coefficient: float = 1.0,
    dtype: str | torch.dtype | None = None, also: Names = None,
    compute_dtype: Literal["float32", "float64"] | None = None, svd: Svd | None = None, keep_base: bool | None = None,
    include: Globs = None, exclude: Globs = None, on_missing: OnMissing | None = None,
    on_buffer: OnBuffer | None = None, strip_prefix: str | None = None, map: Globs = None, skip_input: Globs = None,
    allow_merged: bool | None = None, allow_pickle: bool | None = None, overwrite: bool | None = None,
    shard_size: Size = None, device: str | torch.device | None = None, threads: int | None = None,
    max_memory: Size = None, progress: Callable[[int, int], None] | None = None,
) -> VectorsReceipt:  # fmt: skip
    """Writes every expert's task vector τ_t = θ_t - θ₀ (`centre`: θ_t - θ̄, and θ̄ itself) into the folder `output`.

    `rank` writes matrices as their leading singular triplets; `apply` writes full checkpoints, origin plus
    `coefficient` times the (truncated) task vector. `inputs` may be such files themselves, or state dicts by task. The
    other keywords are those of `merge`. Raises `TaskmergeError`.
    """
    spec, opening, running = split_options(read.given(locals(), OWN))
    coefficient = read.number(coefficient, "--coefficient")
    centre, apply = read.switch(centre, "--centre"), read.switch(apply, "--apply")
    code = None if dtype is None else dtype_code(read.spelled(dtype, "--dtype"))
    wanted = Wanted(centre, None if rank is None else Rank.parse(rank), apply, coefficient, code)
    if coefficient != 1.0 and not apply:
        raise UsageError("a coefficient scales what is applied", where="--coefficient", hint="add --apply")
    return _carry_out(_prepare(inputs, wanted, spec, opening, running), running)


def _prepare(given: Arguments, wanted: Wanted, spec: MergeSpec, opening: InputOptions, running: RunOptions) -> Work:
    """Opens headers, compares them, and lays the work out. Reads no weights, writes nothing."""
    folder = running.output or Path("applied" if wanted.apply else "vectors")
    own = [] if wanted.apply else [folder / f"{task}{ENDINGS[wanted.kind]}" for task, _ in named(given)]
    own += [folder / f"{CENTRE}.safetensors"] if wanted.writes_centre else []
    inputs = resolve(given, replace(opening, outputs=tuple(own), earlier=("vector", "factors", "centre")))
    _check(inputs, wanted, folder)
    _check_configs(inputs)
    paths = [folder / f"{expert.task}{ENDINGS[wanted.kind]}" for expert in inputs.experts]
    check_free(paths, overwrite=running.overwrite)
    plan = _plan(inputs, wanted, spec, running)
    check_disk(plan.costs.bytes_written, paths)
    rows = _rows(spec, wanted, inputs, running)
    return Work(wanted, rows, plan, inputs, folder, progress_of(plan, running), spec.also, spec.on_buffer, spec.svd)


def _plan(inputs: Inputs, wanted: Wanted, spec: MergeSpec, running: RunOptions) -> Plan:
    """Every tensor accounted for, and what that costs."""
    differences = any(expert.kind != "weight" for expert in inputs.experts)
    reads_base = not wanted.centre or differences
    agreed = agree(spec, inputs.base, inputs.experts, reads_base)
    jobs, costs = costed(
        _jobs(spec, wanted, inputs, agreed), len(inputs.experts) + wanted.centre,
        inputs.sources if reads_base else inputs.experts, len(inputs.experts),
        budget(running.threads, running.max_memory),
    )  # fmt: skip
    tasks = tuple(expert.task for expert in inputs.experts)
    return Plan(jobs, tasks, agreed.heads, agreed.left_out, agreed.notes, costs)


def _rows(spec: MergeSpec, wanted: Wanted, inputs: Inputs, running: RunOptions) -> Rows:
    """The experts as differences from the base, or from their average."""
    dtype = torch.float64 if spec.compute_dtype == "float64" else torch.float32
    device = named_device(running.device, accelerate=wanted.rank is not None)
    tallies = {id(source): Tally() for source in inputs.sources}
    space: Space = "centred" if wanted.centre else "delta"
    return Rows(inputs.base, inputs.experts, space, even(inputs.experts), dtype, device, tallies)


def _check(inputs: Inputs, wanted: Wanted, folder: Path) -> None:
    """Refuses what has no meaning: no origin, vectors that are centred already, names that are no file names; and
    outputs that would replace an input."""
    if not wanted.centre and inputs.base is None:
        raise UsageError(
            "task vectors are differences from a base", where="--base",
            hint="name the checkpoint that the experts were fine-tuned from, or take their average with --centre",
        )  # fmt: skip
    centred = [expert for expert in inputs.experts if expert.kind == "centred"]
    if wanted.centre and centred:
        reason = "it holds differences from the average already"
        raise UsageError(reason, where=centred[0].where, hint="leave out --centre")
    for expert in inputs.experts:
        if "/" in expert.task or expert.task in ("", CENTRE):
            raise UsageError(f"`{expert.task}` is no name for a file of a task", hint="name the input: `other=PATH`")
    read = files_read(inputs.sources)
    written = [f"{expert.task}{ENDINGS[wanted.kind]}" for expert in inputs.experts]
    for name in (*written, *([f"{CENTRE}.safetensors"] if wanted.writes_centre else [])):
        check_kept(lay_out(folder / name, (), overwrite=True), read)


def _check_configs(inputs: Inputs) -> None:
    """Refuses folders whose configurations make different functions of the same weights."""
    if lines := clashing(inputs):
        hint = "take fine-tunings of one model; a file of weights as input, in place of its folder, brings none"
        raise Mismatch(f"{DIFFERS}\n" + "\n".join(lines), hint=hint)


def _jobs(spec: MergeSpec, wanted: Wanted, inputs: Inputs, agreed: Agreed) -> list[TensorJob]:
    """One job a tensor: matrices whole where they are factored, the rest in slices."""
    specs = specs_of(agreed.names, inputs.experts)
    jobs = [_job(spec, wanted, unit, specs[unit.name]) for unit in units(specs)]
    if wanted.apply and inputs.base is not None:
        copied = {name: inputs.base.specs[name] for name in agreed.copied}
        jobs += [TensorJob(unit_of(name, spec), (_as_stored(name, spec),), "copy") for name, spec in copied.items()]
    if not jobs:
        raise Mismatch("there is no tensor to take", hint="check --include and --exclude")
    if wanted.rank and not any(job.reads == "matrix" for job in jobs):
        raise Mismatch("there is no matrix to factor: no tensor is of the class `linear`", hint="widen it with --also")
    return sorted(jobs, key=lambda job: job.name)


def _job(spec: MergeSpec, wanted: Wanted, unit: Unit, stored: TensorSpec) -> TensorJob:
    """What is done with one tensor that experts hold."""
    if unit.kind == "buffer":
        return TensorJob(unit, (_as_stored(unit.name, stored),), "buffer")
    outputs = (OutputSpec(unit.name, wanted.dtype or "F32", unit.shape),)
    if wanted.rank and unit.truncated(spec.also):
        return TensorJob(unit, outputs, "merge", "method", "matrix")
    return TensorJob(unit, outputs, "merge")


def _as_stored(name: str, spec: TensorSpec) -> OutputSpec:
    return OutputSpec(name, spec.kept, spec.shape)


def _carry_out(work: Work, running: RunOptions) -> VectorsReceipt:
    """Reads, subtracts, factors and writes every tensor; then seals and commits all files."""
    started = time.perf_counter()
    plan, wanted = work.plan, work.wanted
    return_large_blocks()
    with single_threaded(), ExitStack() as stack:
        stack.callback(work.inputs.close)
        counts = energy_counts(work) if wanted.rank and wanted.rank.kind == "energy" else {}
        files = staged(work, counts, running, stack)
        order = sorted(plan.jobs, key=lambda job: (-job.memory, job.name))
        for _ in work.parallel(order, lambda job: subtract(work, files, job)):
            pass
        work.rows.account()
        work.inputs.check_unchanged()
        outputs, digest = committed(work, files, overwrite=running.overwrite)
    return VectorsReceipt(
        outputs, origin_of(work), digest, expert_digests(work), str(wanted.rank) if wanted.rank else None, files.ranks,
        (*plan.notes, *work.inputs.notes), work.inputs.warnings, plan.costs.bytes_read,
        sum(output.bytes for output in outputs), peak_memory(), time.perf_counter() - started,
    )  # fmt: skip
