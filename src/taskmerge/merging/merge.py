"""`merge`: several fine-tunings in, one checkpoint (or one per grid point) out."""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taskmerge import __version__
from taskmerge.checkpoint.weights import PICKLE_ENDINGS
from taskmerge.checkpoint.writer import Sink, stage
from taskmerge.errors import NotEnough, UsageError, nearest
from taskmerge.merging import record
from taskmerge.merging.card import sidecars, tokenizer_warnings
from taskmerge.merging.execute import Run, execute
from taskmerge.merging.heads import heads_folder, stage_heads
from taskmerge.merging.inputs import InputOptions, Inputs, resolve
from taskmerge.merging.kernels import BoundPoint, bind_points, earlier_points, largest_first
from taskmerge.merging.plan import Plan, make_plan
from taskmerge.merging.record import MergeReceipt, OutputRecord
from taskmerge.merging.sources import Source, Tally
from taskmerge.methods.contract import Setting, Value
from taskmerge.methods.registry import methods
from taskmerge.specs.merge import MergeSpec, plain_value

Arguments = Sequence[str | Path] | Mapping[str, str | Path]
MOST_POINTS = 512  # outputs of one grid: each is an open file


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that don't shape the result: where it goes and what it may cost."""

    output: Path | None = None
    overwrite: bool = False
    shard_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    digests: bool = True
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to fit together: inputs, plan, grid points and their output paths."""

    spec: MergeSpec
    inputs: Inputs
    plan: Plan
    points: tuple[BoundPoint, ...]
    paths: tuple[Path, ...]
    device: torch.device


def merge(
    inputs: Arguments,
    *,
    method: str = "cart",
    base: str | Path | None = None,
    output: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> MergeReceipt:
    """Merges experts into one checkpoint and returns the receipt.

    `inputs` are paths (files, indexes, folders, quoted globs, `name=path`) or a mapping from task to path. Every
    option of design.md §1 is a keyword with the same name (`qkv="fused"`, `include=["visual.*"]`, `overwrite=True`),
    and so is every option of the method (`rank=0.08`; a sequence of values means a grid). Raises `TaskmergeError`.
    """
    spec, opening, running = split_options(method, base, output, weights, options)
    return carry_out(prepare(inputs, spec, opening, running), running)


def split_options(
    method: str, base: str | Path | None, output: str | Path | None, weights: Mapping[str, float] | None,
    options: Mapping[str, Any],
) -> tuple[MergeSpec, InputOptions, RunOptions]:  # fmt: skip
    """Sorts keywords into what shapes the result, how inputs are understood, and how the run goes."""
    groups: dict[type, dict[str, Any]] = {MergeSpec: {}, InputOptions: {}, RunOptions: {}}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        owner = next((one for one in groups if name in one.__dataclass_fields__), None)  # type: ignore[attr-defined]
        (rest if owner is None else groups[owner])[name] = value
    groups[InputOptions]["base"] = None if base is None else Path(base)
    groups[RunOptions]["output"] = None if output is None else Path(output)
    spec = MergeSpec(method=method, weights=dict(weights or {}), **groups[MergeSpec])
    spec = replace(spec, options=grid(spec, rest), grid=grid(spec, spec.grid))
    opening = InputOptions(**{**groups[InputOptions], "strip_prefix": spec.strip_prefix})
    return spec, opening, RunOptions(**groups[RunOptions])


def grid(spec: MergeSpec, given: Mapping[str, object]) -> dict[str, tuple[Value, ...]]:
    """The method's options as tuples of checked values: texts may hold grids, sequences are grids."""
    settings = {name: setting for name, (_, setting) in spec.settings().items()}
    found = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in settings:
            raise _no_option(spec.method, key, [setting.flag for setting in settings.values()])
        found[key] = _values(settings[key], value)
    return found


def _no_option(method: str, name: str, known: Sequence[str]) -> UsageError:
    """The complaint about an option that the method does not have: whose it is, or which name is near."""
    flag = f"--{name.replace('_', '-')}"
    owners = [one.name for one in methods().values() if name in one.settings]
    has = f"{method} has {', '.join(known)}" if known else f"{method} has no options"
    if owners:
        return UsageError(
            f"`{method}` has no option `{flag}`", where=flag, hint=f"{flag} belongs to {', '.join(owners)}; {has}"
        )
    close = nearest(flag, known)
    return UsageError(
        f"unknown option of {method} `{flag}`", where=flag, hint=f"did you mean `{close}`?" if close else has
    )


def _values(setting: Setting, value: object) -> tuple[Value, ...]:
    if isinstance(value, str):
        return setting.read(value)
    if isinstance(value, Sequence):
        return tuple(setting.check(one) for one in value)
    return (setting.check(value),)


def prepare(inputs: Arguments, spec: MergeSpec, opening: InputOptions, running: RunOptions) -> Prepared:
    """Opens headers, compares them, plans, and checks memory, disk and output paths. Reads and writes no weights."""
    points = bind_points(spec)
    if len(points) > MOST_POINTS:
        raise UsageError(
            f"the grid has {len(points)} points, more than {MOST_POINTS}", hint="write several smaller grids"
        )
    paths = output_paths(spec, running, points)
    resolved = resolve(inputs, replace(opening, outputs=tuple(paths)))
    workers = running.threads or len(os.sched_getaffinity(0))
    plan = make_plan(
        spec, resolved.base, resolved.experts, workers=workers, points=[point.point for point in points],
        max_memory=running.max_memory, resident=record.resident_memory(),
    )  # fmt: skip
    check_disk(plan, paths)
    return Prepared(spec, resolved, plan, tuple(points), tuple(paths), device_for(running.device, spec))


def output_paths(spec: MergeSpec, running: RunOptions, points: Sequence[BoundPoint]) -> list[Path]:
    """Where every grid point goes: the name carries what varies."""
    chain = [spec.method, *([spec.then] if spec.then else []), *(["lines"] if spec.lines else [])]
    plain = Path(f"merged-{'-'.join(part.replace('_', '-') for part in chain)}.safetensors")
    output = running.output or plain
    if output.suffix in PICKLE_ENDINGS:
        hint = f"such as `-o {output.with_suffix('.safetensors')}`"
        raise UsageError(f"{output} does not end in .safetensors: pickles are not written", where="-o", hint=hint)
    varying = [name for name, values in sorted(spec.options.items()) if len(values) > 1]
    if not varying:
        return [output]
    said = [
        "-".join(f"{name}{plain_value(point.point[name])}".replace(":", "") for name in varying) for point in points
    ]
    if _is_folder(output):
        return [output / re.sub(r"_", "-", one) for one in said]
    return [output.with_name(f"{output.stem}-{re.sub('_', '-', one)}.safetensors") for one in said]


def check_disk(plan: Plan, paths: Sequence[Path]) -> None:
    folder = paths[0].absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if plan.bytes_written > free:
        raise NotEnough(
            f"the outputs need {plan.bytes_written / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left",
            where=str(folder),
            hint="free space, choose another folder with -o, or write a smaller type with --dtype",
        )  # fmt: skip


def device_for(said: str, spec: MergeSpec) -> torch.device:
    """The device of the arithmetic; `auto` takes a GPU only for methods that factorise."""
    last = spec.chain()[-1]
    if said == "auto":
        said = "cuda" if last.granularity(last.defaults()) == "matrix" and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(said)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`{said}` is no device", where="--device", hint="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise NotEnough(f"there is no device `{said}`", where="--device", hint="use --device cpu")
    return device


def carry_out(prepared: Prepared, running: RunOptions) -> MergeReceipt:
    """Runs the plan into staged outputs, seals them with their provenance, and commits."""
    started = time.perf_counter()
    plan, inputs, spec = prepared.plan, prepared.inputs, prepared.spec
    sources: list[Source] = [*inputs.experts, *([inputs.base] if inputs.base else [])]
    tallies = {id(source): Tally() for source in sources} if running.digests else {}
    warnings = [*inputs.warnings, *tokenizer_warnings(inputs.experts)]
    points = largest_first(prepared.points)
    paths = {id(point): path for point, path in zip(prepared.points, prepared.paths, strict=True)}
    with ExitStack() as stack:
        stack.callback(inputs.close)
        kept = _stage_heads(prepared, running, stack)  # first: an output folder must be there before its weights
        sinks: list[Sink] = []
        for point in points:
            blank = _record(prepared, point, tallies, ())
            room = record.reserve(blank, len(inputs.experts) + 1)
            sinks.append(stack.enter_context(_stage(paths[id(point)], point, running, prepared, room)))
        run = Run(
            spec, plan, inputs.base, inputs.experts, points, sinks, prepared.device, tallies,
            progress_of(plan, running), earlier_points(spec, points[0]),
        )  # fmt: skip
        execute(run)
        twins = _twins(inputs.experts, tallies)
        for head, said in kept:
            head.commit(said)
        done = []
        for point, sink in zip(points, sinks, strict=True):
            sealed = _record(prepared, point, tallies, twins)
            sink.commit(record.metadata(sealed))
            own = heads_folder(paths[id(point)], _is_folder(paths[id(point)]))
            files = (*sink.files, *(one for head, _ in kept for one in head.files if one.parent == own))
            written = OutputRecord(
                str(sink.path), tuple(map(str, files)), _size(files), dict(sealed["recipe"]["options"])
            )
            done.append((paths[id(point)], written, sealed))
    found = dict.fromkeys(note for point in points for note in point.notes)
    done.sort(key=lambda one: prepared.paths.index(one[0]))
    seconds = time.perf_counter() - started
    return MergeReceipt(
        tuple(one for _, one, _ in done), done[0][2], (*plan.notes, *inputs.notes, *found), (*warnings, *twins),
        plan.bytes_read, plan.bytes_written, plan.memory, record.peak_memory(), seconds,
    )  # fmt: skip


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _record(
    prepared: Prepared, point: BoundPoint, tallies: Mapping[int, Tally], warnings: Sequence[str]
) -> dict[str, Any]:
    """The provenance of one grid point; its warnings are those that the tensors themselves give rise to."""
    return record.provenance(
        __version__, prepared.spec.recipe(point.point), prepared.plan, prepared.inputs.experts, prepared.inputs.base,
        tallies, prepared.device.type, warnings,
    )  # fmt: skip


def _stage(
    path: Path, point: BoundPoint, running: RunOptions, prepared: Prepared, room: int
) -> AbstractContextManager[Sink]:
    """The staged output of one grid point; a folder also gets configuration, tokenizer and model card."""
    folder, inputs = _is_folder(path), prepared.inputs
    extra = sidecars(inputs.experts, inputs.base, prepared.spec.recipe(point.point)) if folder else {}
    return stage(
        path, prepared.plan.outputs(), overwrite=running.overwrite, shard_size=running.shard_size, reserve=room,
        sidecars=extra, folder=folder,
    )  # fmt: skip


def _stage_heads(prepared: Prepared, running: RunOptions, stack: ExitStack) -> list[tuple[Sink, dict[str, str]]]:
    """The heads that --heads keep leaves out of the merge: once for outputs beside each other, once for each folder."""
    folders = dict.fromkeys(heads_folder(path, _is_folder(path)) for path in prepared.paths if prepared.plan.heads)
    return [
        head for folder in folders
        for head in stage_heads(
            prepared.plan.heads, prepared.inputs.experts, folder, stack, version=__version__,
            overwrite=running.overwrite,
        )
    ]  # fmt: skip


def _is_folder(path: Path) -> bool:
    return path.is_dir() or path.suffix != ".safetensors"


def progress_of(plan: Plan, running: RunOptions) -> Callable[[int], None]:
    """Counts merged parameters and tells the caller."""
    total = sum(job.numel for job in plan.jobs)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if running.progress is not None:
            running.progress(done, total)

    return advance


def _twins(experts: Sequence[Source], tallies: Mapping[int, Tally]) -> list[str]:
    """Warnings for experts of the same content."""
    seen: dict[str, str] = {}
    found = []
    for expert in experts:
        if id(expert) in tallies:
            digest, _ = tallies[id(expert)].finish(expert.stored)
            if digest in seen:
                found.append(f"{seen[digest]} and {expert.task} are the same, tensor for tensor")
            seen.setdefault(digest, expert.task)
    return found
