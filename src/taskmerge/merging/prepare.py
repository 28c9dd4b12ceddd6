"""Headers and a spec become a plan, with the grid's points and the paths of its outputs: nothing is read or written."""

import fnmatch
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.cards import CARD, sealed_card
from taskmerge.checkpoint.dtypes import CODES, DTYPES, is_float
from taskmerge.checkpoint.header import DEQUANTISED, TensorSpec
from taskmerge.checkpoint.held import Held
from taskmerge.checkpoint.sidecars import CONFIG
from taskmerge.checkpoint.writer import lay_out
from taskmerge.documents import cycles_left
from taskmerge.errors import Mismatch, UsageError, listed, unknown_name
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.buffers import is_counter
from taskmerge.experts.compare import BASE, Agreed, agree, dtypes_of, globs_of, keeper_of, specs_of
from taskmerge.experts.factors import restrictions
from taskmerge.experts.inputs import InputOptions, Inputs, resolve
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Unit, unit_of, units
from taskmerge.merging.card import card, licence_warnings
from taskmerge.merging.costs import Budget, budget, costed
from taskmerge.merging.duration import seconds_of
from taskmerge.merging.heads import head_files, heads_folder, holds
from taskmerge.merging.kernels import BoundPoint, bind_points
from taskmerge.merging.learned import check_asked, check_fits
from taskmerge.merging.options import RunOptions
from taskmerge.merging.outputs import check_disk, check_free, check_kept, files_read, is_folder, output_paths
from taskmerge.merging.plan import Plan, TensorJob, Treatment
from taskmerge.merging.travel import Travelling, check_configs, describes_base, of_file, travel
from taskmerge.methods.contract import Method, Reads
from taskmerge.methods.registry import DEFAULT
from taskmerge.numerics.device import named_device
from taskmerge.numerics.rank import Rank
from taskmerge.specs.merge import WIDENING, MergeSpec

LITTLE = 0.3  # share of the parameters below which a spectral method says how little it treats
MOST_POINTS = 512  # outputs of one grid: each is an open file


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to fit together: inputs, plan, grid points and their output paths.

    `travels` are the files that go with the weights into a folder; for outputs that are files there are none. There are
    no paths where results stay in memory.
    """

    spec: MergeSpec
    inputs: Inputs
    plan: Plan
    points: tuple[BoundPoint, ...]
    paths: tuple[Path, ...]
    device: torch.device
    travels: Travelling

    @property
    def reads_base(self) -> bool:
        """Whether the base is read: differences are taken from it, or it stands in for what some expert lacks."""
        kept = [job for job in self.plan.jobs if job.action == "keep"]
        written = {output.name for output in self.plan.outputs()} - {job.name for job in kept}
        return self.inputs.base is not None and (
            any(job.keeper == BASE for job in kept)
            or any(method.needs_base for method in self.points[0].chain)
            or any(expert.kind != "weight" or not written <= expert.specs.keys() for expert in self.inputs.experts)
        )


@cycles_left()  # of the million objects that a large plan is made of, all stay
def prepare(inputs: Arguments, spec: MergeSpec, opening: InputOptions, running: RunOptions) -> Prepared:
    """Opens headers, compares them, plans, and checks memory, disk and output paths. Reads and writes no weights."""
    check_asked(spec)
    points = bind_points(spec)
    if len(points) > MOST_POINTS:
        raise UsageError(
            f"the grid has {len(points)} points, more than {MOST_POINTS}", hint="write several smaller grids"
        )
    keeps = keeps_results(inputs, running)
    paths = [] if keeps else output_paths(spec, running.output, points, inputs, opening.base)
    check_free(paths, overwrite=running.overwrite)
    resolved = resolve(inputs, replace(opening, outputs=tuple(paths)))
    points = bind_points(spec, len(resolved.experts))
    warnings = check_configs(resolved, spec)
    plan = make_plan(spec, resolved, points, budget(running.threads, running.max_memory, keeps=keeps))
    if paths:
        check_disk(0 if running.as_adapter else plan.costs.bytes_written, paths)
    device = named_device(running.device, accelerate=granularity(points) == "matrix")
    seconds = seconds_of(
        plan.jobs, points, len(resolved.experts), plan.costs, precise=spec.compute_dtype == "float64",
        digests=running.digests, gpu=device.type == "cuda",
    )  # fmt: skip
    plan = replace(plan, costs=replace(plan.costs, seconds=seconds))
    travels = along(resolved, spec, plan, code=running.with_code) if any(map(is_folder, paths)) else of_file(resolved)
    resolved = replace(resolved, warnings=(*resolved.warnings, *warnings, *travels.warnings))
    plan = replace(plan, notes=(*plan.notes, *travels.notes))
    prepared = Prepared(spec, resolved, plan, tuple(points), tuple(paths), device, travels)
    check_outputs(prepared, running)
    return prepared


def keeps_results(inputs: Arguments, running: RunOptions) -> bool:
    """Whether results stay in memory: where all experts are, and no output is named. `UsageError` where some are."""
    places = [place for _, place in named(inputs)] if running.output is None else []
    held = [isinstance(place, Held) for place in places]
    if any(held) and not all(held):
        what = "some experts are in memory, others are files"
        raise UsageError(what, where="inputs", hint="name a file with `output`, or load the others too")
    return any(held)


def along(inputs: Inputs, spec: MergeSpec, plan: Plan, *, code: bool = False) -> Travelling:
    """What goes into an output folder beside its weights."""
    sizes: Counter[str] = Counter()
    for output in plan.outputs():
        sizes[output.dtype] += math.prod(output.shape) * is_float(output.dtype)
    written = str(DTYPES[max(sizes, key=lambda code: sizes[code])]).removeprefix("torch.")
    found = travel(inputs, spec, code=code, written=written)
    lacking = lacking_warnings(inputs, plan, found) if CONFIG in found.files else []
    return replace(found, warnings=[*found.warnings, *licence_warnings(inputs), *lacking])


def lacking_warnings(inputs: Inputs, plan: Plan, travels: Travelling) -> list[str]:
    """A warning where a folder lacks tensors of the model that its configuration describes: the experts have them, or
    the base, if the configuration is that of its kind of model."""
    written = {output.name for output in plan.outputs()}
    held = {name for expert in inputs.experts for name in expert.specs}
    held |= inputs.base.specs.keys() if inputs.base is not None and describes_base(inputs.base, travels) else set()
    lacking = sorted(held - written - set(plan.heads))
    if not lacking:
        return []
    who = keeper_of(lacking, inputs.base, inputs.experts)
    globs = globs_of(lacking, held) or ["GLOB"]
    options = " ".join(f"--keep-from {who or 'TASK'} '{glob}'" for glob in globs)
    return [
        f"the folder lacks {len(lacking):,} tensors that its {CONFIG} needs ({listed(lacking, 5)}), which transformers "
        f"fills with random numbers: `{options}` copies them, unmerged"
    ]


def check_outputs(prepared: Prepared, running: RunOptions) -> None:
    """Refuses files of the outputs, and heads, that are there already, as staging them would, and inputs among them."""
    inputs = prepared.inputs
    check_free(prepared.paths, overwrite=running.overwrite)
    read = files_read(inputs.sources)
    for point, path in zip(prepared.points, prepared.paths, strict=bool(prepared.paths)):
        check_kept(lay_out(path, prepared.plan.outputs(), **layout_options(prepared, point, path, running)), read)
    for folder in heads_folders(prepared):
        for expert, path, specs in head_files(prepared.plan.heads, inputs.experts, folder):
            same = not running.overwrite and holds(path, expert, specs)
            check_kept(lay_out(path, specs, overwrite=running.overwrite or same), {} if same else read)


def heads_folders(prepared: Prepared) -> list[Path]:
    """Where heads go: once for outputs beside each other, once for each folder."""
    paths = prepared.paths if prepared.plan.heads else ()
    return list(dict.fromkeys(heads_folder(path, is_folder(path)) for path in paths))


def layout_options(prepared: Prepared, point: BoundPoint, path: Path, running: RunOptions) -> dict[str, Any]:
    """How an output is laid out; a folder also gets configuration, tokenizer and model card."""
    folder = is_folder(path)
    files = dict(prepared.travels.files) if folder else {}
    if folder:
        files[CARD] = sealed_card(card(prepared.inputs, prepared.spec.recipe(point.values), files))
    return {
        "overwrite": running.overwrite, "shard_size": running.shard_size, "sidecars": files,
        "folder": folder,
    }  # fmt: skip


# --- the plan --------------------------------------------------------------------------------------------------


def make_plan(spec: MergeSpec, inputs: Inputs, points: Sequence[BoundPoint], allowed: Budget) -> Plan:
    """Compares headers and lays out all work, or raises what stands in the way. Reads nothing."""
    chain, base, experts = spec.chain(), inputs.base, inputs.experts
    _check_tasks(spec, chain, experts)
    needy = next((method for method in chain if method.space == "delta"), None)
    if needy is not None and base is None:
        raise UsageError(
            f"`{needy.name}` works on differences from the base",
            where="--base", hint="name the checkpoint that the experts were fine-tuned from: `--base FILE`",
        )  # fmt: skip
    needs_base = needy is not None or any(expert.kind != "weight" for expert in experts)
    agreed = agree(spec, base, experts, needs_base, keeps=True)
    reads = granularity(points)
    jobs = _jobs(spec, chain, base, experts, agreed, reads)
    _refuse_nothing(jobs, chain[-1], reads)
    if spec.learned is not None:
        check_fits(spec.learned, [expert.task for expert in experts], jobs)
    notes = (*agreed.notes, *_notes(spec, chain, base, experts, agreed, jobs, points))
    read = [*experts, *([base] if base is not None and (needs_base or agreed.copied or _keeps_base(jobs)) else [])]
    item = 8 if spec.compute_dtype == "float64" else 4
    side_by_side = None if spec.learned is None else _components(jobs, points)
    jobs, costs = costed(jobs, len(points), read, len(experts), allowed, item, side_by_side)
    tasks = tuple(expert.task for expert in experts)
    return Plan(jobs, tasks, agreed.heads, agreed.left_out, notes, costs)


def _keeps_base(jobs: Sequence[TensorJob]) -> bool:
    """Whether tensors are copied from the base."""
    return any(job.keeper == BASE for job in jobs)


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
            hint="give as many inputs, or choose a method that takes any number, such as " + DEFAULT,
        )  # fmt: skip
    if spec.weights and not any(method.weighted for method in chain):
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
    reads: Reads,
) -> tuple[TensorJob, ...]:  # fmt: skip
    """One job a tensor (or attention trio), in canonical order."""
    specs = specs_of(agreed.names, experts)
    jobs = [
        _job(spec, chain[-1], unit, tuple(_output(spec, part.name, part.shape, experts) for part in unit.parts), reads)
        for unit in units(specs, "as-is" if reads == "elements" else spec.qkv)
    ]
    jobs += [_copied(spec, name, base.specs[name]) for name in agreed.copied if base is not None]
    jobs += kept_jobs(spec, base, experts)
    return tuple(sorted(jobs, key=lambda job: job.name))


def _copied(spec: MergeSpec, name: str, stored: TensorSpec, keeper: str | None = None) -> TensorJob:
    """A tensor that only the base has, or that is kept from one input."""
    output = OutputSpec(name, _out_dtype(spec, stored.kept), stored.shape)
    return TensorJob(unit_of(name, stored), (output,), action="keep" if keeper else "copy", keeper=keeper)


def kept_jobs(spec: MergeSpec, base: Source | None, experts: Sequence[Source]) -> list[TensorJob]:
    """What --keep-from copies. `UsageError` for names of no input and globs that match nothing of it, `Mismatch` for
    tensors of others that they match and it lacks."""
    sources = {**{one.task: one for one in experts if one.kind == "weight"}, **({BASE: base} if base else {})}
    every = sorted({name for source in (*experts, *([base] if base else [])) for name in source.specs})
    jobs: list[TensorJob] = []
    for holder, glob in spec.keep_from:
        where = f"--keep-from {holder} '{glob}'"
        if holder not in sources:
            raise unknown_name("input with tensors of its own", holder, sources, where=where)
        if not any(fnmatch.fnmatchcase(name, glob) for name in sources[holder].specs):
            hint = "`taskmerge inspect FILE` lists the names"
            raise UsageError(f"matches no tensor of {sources[holder].where}", where=where, hint=hint)
    for name in every:
        who = spec.keeper(name)
        if who is not None and name not in sources[who].specs:
            raise Mismatch(
                f"`{name}`, which --keep-from takes from {who}, is not there", where=sources[who].where,
                hint="give a glob that matches what it has, or name an input that has it",
            )  # fmt: skip
        if who is not None:
            jobs.append(_copied(spec, name, sources[who].specs[name], who))
    return jobs


def granularity(points: Sequence[BoundPoint]) -> Reads:
    """What the chain reads at a time: the coarsest of its members at any point of the grid."""
    order: tuple[Reads, ...] = ("elements", "tensor", "matrix")
    granularities = {
        method.granularity(options)
        for point in points
        for method, options in zip(point.chain, point.options, strict=True)
    }
    return max(granularities, key=order.index)


def _output(spec: MergeSpec, name: str, shape: tuple[int, ...], experts: Sequence[Source]) -> OutputSpec:
    """Name, dtype and shape of a merged tensor: the experts' common dtype, or the one that holds them all."""
    codes = list(dtypes_of(name, experts))
    common = DTYPES[codes[0]]
    for code in codes[1:]:  # torch promotes no 8-bit type
        common, other = (dtype if dtype.itemsize > 1 else torch.float32 for dtype in (common, DTYPES[code]))
        common = torch.promote_types(common, other)
    return OutputSpec(name, _out_dtype(spec, CODES[common]), shape)


def _out_dtype(spec: MergeSpec, code: str) -> str:
    return spec.dtype if spec.dtype and is_float(code) else code


def _job(spec: MergeSpec, last: Method, unit: Unit, outputs: tuple[OutputSpec, ...], reads: Reads) -> TensorJob:
    """The job of one unit: what merges it, and how much of it at a time."""
    if unit.kind == "buffer":
        return TensorJob(unit, outputs, "buffer")
    if last.on_matrices and (reads != "matrix" or not unit.truncated(spec.also)):
        whole = replace(unit, pieces=1, axis=0)
        treatment: Treatment = "elsewhere" if last.elsewhere else "origin"
        return TensorJob(whole, outputs, "merge", treatment, "elements")
    return TensorJob(unit, outputs, "merge", "method", reads)


def _refuse_nothing(jobs: Sequence[TensorJob], last: Method, reads: Reads) -> None:
    """A merge needs tensors, and a spectral method a matrix to truncate: never silently the average."""
    if all(job.action == "keep" for job in jobs):
        raise Mismatch("there is no tensor to merge", hint="check --include and --exclude, and --keep-from")
    spectral = last.on_matrices and reads == "matrix"
    if not spectral or any(job.treatment == "method" and job.action == "merge" for job in jobs):
        return
    there = sorted({job.unit.kind for job in jobs if job.unit.truncated(WIDENING)})
    widen = f"widen it to what these models have: `--also {','.join(there)}`, or " if there else ""
    raise Mismatch(
        f"`{last.name}` finds no matrix to truncate: no tensor is of the class `linear`",
        hint=f"{widen}use `--method average`",
        ways=[*([{"also": tuple(there)}] if there else []), {"method": "average"}],
    )


# --- notes -----------------------------------------------------------------------------------------------------


def _notes(
    spec: MergeSpec, chain: Sequence[Method], base: Source | None, experts: Sequence[Source], agreed: Agreed,
    jobs: Sequence[TensorJob], points: Sequence[BoundPoint],
) -> list[str]:  # fmt: skip
    """What a careful user would want to know about this merge."""
    last = chain[-1]
    notes = [*_little(jobs, last), *_few(experts, last), *_mixed(spec, agreed, experts), *_clamped(jobs, points)]
    notes += _dequantised(spec, jobs, experts, base)
    counters = [job.name for job in jobs if job.action == "buffer" and is_counter(job.name)]
    if counters:
        notes.append(f"the largest value of all experts is taken for {listed(counters)}")
    for who in dict.fromkeys(job.keeper for job in jobs if job.keeper is not None):
        names = [job.name for job in jobs if job.keeper == who]
        notes.append(f"copied unmerged from {who}: {len(names):,} tensors ({listed(names, 5)})")
    if agreed.heads:
        notes.append(f"{len(agreed.heads)} tensors are not merged but kept per task: {listed(agreed.heads)}")
    return notes + restrictions(experts, _components(jobs, points))


def _little(jobs: Sequence[TensorJob], last: Method) -> list[str]:
    """A note where a spectral method truncates a small part of the model, such as one that is mostly embeddings."""
    merged = [job for job in jobs if job.action == "merge"]
    total, own = sum(job.numel for job in merged), sum(job.numel for job in merged if job.treatment == "method")
    rest = {job.unit.kind for job in merged if job.treatment != "method" and job.unit.truncated(WIDENING)}
    if own == 0 or own >= LITTLE * total or not rest:
        return []
    return [f"`{last.name}` treats {own / total:.0%} of the parameters (`--also {','.join(sorted(rest))}` widens it)"]


def _few(experts: Sequence[Source], last: Method) -> list[str]:
    """Notes on merges of one or two experts."""
    if len(experts) == 1:
        result = "the result is that expert" if last.space != "delta" else "one task vector is scaled"
        return [f"only one expert: {result}"]
    return [last.note_for[len(experts)]] if len(experts) in last.note_for else []


def _mixed(spec: MergeSpec, agreed: Agreed, experts: Sequence[Source]) -> list[str]:
    """A note on tensors of which the experts hold several dtypes."""
    mixed = [codes for name in agreed.names if len(codes := dtypes_of(name, experts)) > 1]
    if not mixed or spec.dtype:
        return []
    example = ", ".join(f"{code} in {'/'.join(tasks)}" for code, tasks in mixed[0].items())
    return [
        f"{len(mixed)} tensors differ in dtype between experts ({example}) and are promoted (`--dtype` says otherwise)"
    ]


def _dequantised(
    spec: MergeSpec, jobs: Sequence[TensorJob], experts: Sequence[Source], base: Source | None
) -> list[str]:
    """A note where codes with scales decide about the output's type."""
    if spec.dtype or not any(_of_codes(output.name, job, experts, base) for job in jobs for output in job.outputs):
        return []
    return [f"what is dequantised is written as {DEQUANTISED} (`--dtype` says otherwise)"]


def _of_codes(name: str, job: TensorJob, experts: Sequence[Source], base: Source | None) -> bool:
    """Whether a tensor comes from codes with scales in one of its inputs."""
    holders = [job.holder(base, experts)] if job.action in ("copy", "keep") else experts
    return any(source and name in source.specs and source.specs[name].scaling is not None for source in holders)


def _clamped(jobs: Sequence[TensorJob], points: Sequence[BoundPoint]) -> list[str]:
    """A note for every count of components that is above the full rank of some matrices."""
    full = [min(job.unit.matrix) for job in jobs if job.factored for _ in range(job.unit.matrices)]
    ranks = [point.options[-1].get("rank") for point in points]
    counts = [rank for rank in ranks if isinstance(rank, Rank) and rank.kind == "count"]
    above = [(rank, sum(rank.value > side for side in full)) for rank in counts]
    return [f"rank {rank} is above the full rank of {many} matrices, clamped there" for rank, many in above if many]


def _components(jobs: Sequence[TensorJob], points: Sequence[BoundPoint]) -> dict[str, int]:
    """The most components that the method takes of every matrix, at any point of the grid."""
    ranks = [point.options[-1].get("rank") for point in points]
    full = {job.name: min(job.unit.matrix) for job in jobs if job.factored}
    counts = [rank for rank in ranks if isinstance(rank, Rank) and rank.kind != "energy"]
    if len(counts) < len(ranks):
        return full
    return {name: max(rank.resolve(side) for rank in counts) for name, side in full.items()}
