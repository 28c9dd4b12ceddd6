"""The files of `vectors`: what each of them holds, says about itself, and when it comes into being."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.provenance import BLANK, metadata, reserve, sealed
from taskmerge.checkpoint.writer import Sink, commit, stage
from taskmerge.errors import Mismatch
from taskmerge.experts.factors import PARTS
from taskmerge.experts.inputs import Inputs
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source, Tally
from taskmerge.merging.options import RunOptions
from taskmerge.merging.plan import Plan, TensorJob
from taskmerge.numerics.arithmetic import arithmetic
from taskmerge.numerics.rank import Rank
from taskmerge.specs.merge import OnBuffer, Svd
from taskmerge.version import __version__

CENTRE = "centre"
R = TypeVar("R")
FileKind = Literal["vector", "factors", "checkpoint"]
ENDINGS: Mapping[FileKind, str] = {
    "vector": ".vector.safetensors",
    "factors": ".factors.safetensors",
    "checkpoint": ".safetensors",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `vectors` is asked for besides the options that it shares with `merge`."""

    centre: bool
    rank: Rank | None
    apply: bool
    coefficient: float
    dtype: str | None

    @property
    def kind(self) -> FileKind:
        return "checkpoint" if self.apply else "factors" if self.rank else "vector"

    @property
    def writes_centre(self) -> bool:
        return self.centre and not self.apply

    @property
    def centre_dtype(self) -> str:
        """The centre loses nothing that the vectors keep."""
        return "F64" if self.dtype == "F64" else "F32"


@dataclass(frozen=True)
class Work:
    """Everything that is known before a tensor is read. `also` are the further classes that are factored."""

    wanted: Wanted
    rows: Rows
    plan: Plan
    inputs: Inputs
    folder: Path
    progress: Callable[[int], None]
    also: tuple[str, ...]
    on_buffer: OnBuffer
    svd: Svd

    def parallel(self, jobs: Sequence[TensorJob], work: Callable[[TensorJob], R]) -> Iterator[R]:
        """`work` over jobs on all workers, within the plan's memory; results in the order of `jobs`."""
        costs = self.plan.costs
        return parallel(jobs, work, workers=costs.workers, in_flight=costs.in_flight, stop=self.rows.stop)


@dataclass(frozen=True, slots=True)
class VectorOutput:
    """One written file (or its shards): what it holds, and of which task (None for the centre)."""

    path: str
    files: tuple[str, ...]
    bytes: int
    kind: str
    task: str | None


@dataclass
class Files:
    """The staged outputs: one a task, and the centre with the digest of what went into it."""

    tasks: Mapping[str, Sink]
    specs: Mapping[str, Mapping[str, OutputSpec]]
    centre: Sink | None
    digest: Tally = field(default_factory=Tally)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)


# --- before the work -------------------------------------------------------------------------------------------


def staged(work: Work, counts: Mapping[str, list[int]], running: RunOptions, stack: ExitStack) -> Files:
    """Opens all outputs under staging names."""
    experts = work.rows.experts
    specs = {expert.task: _specs(work, index, counts) for index, expert in enumerate(experts)}
    ending = ENDINGS[work.wanted.kind]
    names = [(task, work.folder / f"{task}{ending}", list(outputs.values())) for task, outputs in specs.items()]
    if work.wanted.writes_centre:
        dtype = work.wanted.centre_dtype
        plain = [replace(output, dtype=dtype) if is_float(output.dtype) else output for output in work.plan.outputs()]
        names.append((CENTRE, work.folder / f"{CENTRE}.safetensors", plain))
    blank = {name: _metadata(work, name, specs, {}, BLANK) for name, _, _ in names}
    opened = {
        name: stack.enter_context(
            stage(
                path, outputs, overwrite=running.overwrite, shard_size=running.shard_size,
                reserve=reserve(blank[name], 1), folder=False, beside=work.folder,
            )
        )
        for name, path, outputs in names
    }  # fmt: skip
    return Files({expert.task: opened[expert.task] for expert in experts}, specs, opened.get(CENTRE))


def _specs(work: Work, task: int, counts: Mapping[str, list[int]]) -> dict[str, OutputSpec]:
    """What one task's file holds: tensors under their names, factors under theirs."""
    wanted, expert, specs = work.wanted, work.rows.experts[task], dict[str, OutputSpec]()
    for job in work.plan.jobs:
        if job.reads == "matrix" and not wanted.apply:
            k = _count(work, job, task, counts)
            specs.update({part.name: part for part in _factor_specs(job, k)})
            continue
        dtype = job.outputs[0].dtype
        if wanted.apply and job.action == "merge":
            dtype = wanted.dtype or _dtype(expert, work.rows.base, job.name)
        if job.name in specs:
            reason = "its name is that of another tensor's factor"
            raise Mismatch(reason, where=f"`{job.name}`", hint="leave it out with --exclude")
        specs[job.name] = OutputSpec(job.name, dtype, job.unit.shape)
    return specs


def _factor_specs(job: TensorJob, k: int) -> list[OutputSpec]:
    """U, s and Vt of a matrix; those of a stack lie stacked."""
    (m, n), stack = job.unit.matrix, job.unit.shape[:1] if job.unit.kind == "stack" else ()
    shapes = ((*stack, m, k), (*stack, k), (*stack, k, n))
    return [OutputSpec(job.name + part, "F32", shape) for part, shape in zip(PARTS, shapes, strict=True)]


def _count(work: Work, job: TensorJob, task: int, counts: Mapping[str, list[int]]) -> int:
    """Components written of one matrix."""
    rank = work.wanted.rank
    return counts[job.name][task] if job.name in counts or rank is None else rank.resolve(min(job.unit.matrix))


def _dtype(expert: Source, base: Source | None, name: str) -> str:
    """The dtype that an expert holds (or held) a tensor in."""
    holder = expert if name in expert.specs or base is None else base
    return holder.specs[name].kept


# --- after it --------------------------------------------------------------------------------------------------


def committed(work: Work, files: Files, *, overwrite: bool) -> tuple[tuple[VectorOutput, ...], str]:
    """Seals all files with their provenance, gives them their names together; and the digest of the origin."""
    base = work.rows.base
    digest = ""
    if base is not None and not work.wanted.centre:
        digest = work.rows.tallies[id(base)].finish(base.stored, frozenset(_origin_names(work)))[0]
    sinks = {**({CENTRE: files.centre} if files.centre else {}), **files.tasks}
    if files.centre is not None:
        plain = {output.name: _described(output, work.wanted.centre_dtype) for output in work.plan.outputs()}
        digest = files.digest.finish(plain, frozenset(_origin_names(work)))[0]
    records = {name: _metadata(work, name, files.specs, files.ranks.get(name, {}), digest) for name in sinks}
    for name, sink in sinks.items():
        sink.seal(metadata(sealed(records[name])))
    commit(list(sinks.values()), overwrite=overwrite, folder=work.folder)
    outputs = []
    for name, sink in sinks.items():
        size = sum(file.stat().st_size for file in sink.files)
        task = None if name == CENTRE else name
        kind = str(records[name]["kind"])
        outputs.append(VectorOutput(str(sink.path), tuple(map(str, sink.files)), size, kind, task))
    return tuple(outputs), digest


def _described(output: OutputSpec, dtype: str) -> TensorSpec:
    """A tensor of the centre, as its header will describe it."""
    code = dtype if is_float(output.dtype) else output.dtype
    return TensorSpec(output.name, code, output.shape, Path(), 0, 0)


def _metadata(
    work: Work, name: str, specs: Mapping[str, Mapping[str, OutputSpec]], ranks: Mapping[str, int], digest: str
) -> dict[str, object]:
    """The provenance of one file: what it is, of which task and origin, made of which experts."""
    wanted, rows = work.wanted, work.rows
    digests = expert_digests(work, name)
    record: dict[str, object] = {"version": __version__, "experts": digests, "device": rows.device.type}
    factors = bool(wanted.rank)
    record["arithmetic"] = arithmetic(rows.device, products=factors, factors=factors)
    if name == CENTRE and work.wanted.writes_centre:
        return record | {"kind": "centre"}
    record |= {"kind": wanted.kind, "task": name, "origin": origin_of(work)} | (
        {"origin_digest": digest} if digest else {}
    )
    if wanted.rank:
        record |= {"rank": str(wanted.rank), "understood": wanted.rank.understood, "also": list(work.also)}
    if wanted.apply:
        return record | {"coefficient": wanted.coefficient}
    expert = next(expert for expert in rows.experts if expert.task == name)
    floats = [job.name for job in work.plan.jobs if job.action == "merge"]
    dtypes = {tensor: _dtype(expert, rows.base, tensor) for tensor in floats}
    usual = max(sorted(set(dtypes.values())), key=list(dtypes.values()).count, default="F32")
    record |= {
        "tensors": _origin_names(work), "dtype": usual,
        "dtypes": {tensor: code for tensor, code in dtypes.items() if code != usual},
    }  # fmt: skip
    if wanted.rank:
        held = {job.name: specs[name][job.name + ".s"].shape[-1] for job in work.plan.jobs if job.reads == "matrix"}
        record["ranks"] = {**held, **ranks}
    return record


def origin_of(work: Work) -> Literal["base", "centre"]:
    """What the vectors are differences from: centred ones stay so."""
    return "centre" if work.wanted.centre or work.rows.experts[0].kind == "centred" else "base"


def _origin_names(work: Work) -> list[str]:
    """The tensors of the origin that its digest is taken over (all but buffers), under the names in its file."""
    base = work.inputs.base
    names = [job.name for job in work.plan.jobs if job.action == "merge"]
    return names if work.wanted.centre or base is None else [own for name in names for own in base.stored_names(name)]


def expert_digests(work: Work, task: str | None = None) -> dict[str, str]:
    """Content digests of all experts that made the centre; about a base that of `task` alone (None: of all)."""
    first = work.rows.experts[0]
    if first.kind == "centred":
        return dict(first.record["experts"])
    return {
        expert.task: _digest(work, expert)
        for expert in work.rows.experts
        if task in (None, expert.task) or work.wanted.centre
    }


def _digest(work: Work, expert: Source) -> str:
    """The content digest of an expert: of task vectors, that of what they were made of."""
    made_of = expert.record.get("experts", {}).get(expert.record.get("task")) if expert.kind != "weight" else None
    return str(made_of or work.rows.tallies[id(expert)].finish(expert.stored)[0])
