"""`merge`: several fine-tunings in, one checkpoint (or one per grid point) out."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.ahead import Ahead, Stamp, stamp
from taskmerge.checkpoint.provenance import metadata, reserve
from taskmerge.checkpoint.writer import Sink, lay_out, stage
from taskmerge.errors import UsageError
from taskmerge.experts.inputs import InputOptions, Inputs, resolve
from taskmerge.experts.sources import Source, Tally
from taskmerge.merging.card import sidecars, tokenizer_warnings
from taskmerge.merging.execute import execute
from taskmerge.merging.from_suite import from_suite
from taskmerge.merging.heads import head_files, heads_folder, stage_heads
from taskmerge.merging.kernels import BoundPoint, bind_points, earlier_points, largest_first
from taskmerge.merging.options import Arguments, RunOptions, split_options
from taskmerge.merging.outputs import check_disk, check_free, check_kept, files_read, is_folder, output_paths
from taskmerge.merging.plan import Plan, make_plan
from taskmerge.merging.record import MergeReceipt, OutputRecord, provenance
from taskmerge.merging.run import Run
from taskmerge.methods.registry import DEFAULT
from taskmerge.numerics import memory
from taskmerge.numerics.device import cores, named_device
from taskmerge.numerics.lapack import load_routines
from taskmerge.specs.merge import MergeSpec
from taskmerge.version import __version__

MOST_POINTS = 512  # outputs of one grid: each is an open file


@dataclass(frozen=True)
class Prepared:
    """A merge that is known to fit together: inputs, plan, grid points and their output paths."""

    spec: MergeSpec
    inputs: Inputs
    plan: Plan
    points: tuple[BoundPoint, ...]
    paths: tuple[Path, ...]
    device: torch.device

    @property
    def reads_base(self) -> bool:
        """Whether the base is read: differences are taken from it, or it stands in for what some expert lacks."""
        written = {output.name for output in self.plan.outputs()}
        return self.inputs.base is not None and (
            any(one.needs_base for one in self.points[0].chain)
            or any(one.kind != "weight" or not written <= one.specs.keys() for one in self.inputs.experts)
        )


def merge(
    inputs: Arguments = (),
    *,
    method: str = DEFAULT,
    base: str | Path | None = None,
    suite: str | Path | None = None,
    output: str | Path | None = None,
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> MergeReceipt:
    """Merges experts into one checkpoint and returns the receipt.

    `inputs` are paths (files, indexes, folders, quoted globs, `name=path`) or a mapping from task to path. A `suite`
    completes what is not said: the experts by task, the base, `qkv`, and that task heads are not merged. Every option
    of the command is a keyword with the same name (`qkv="fused"`, `include=["visual.*"]`, `overwrite=True`), and so is
    every option of the method (`rank=0.08`; a sequence of values means a grid). Raises `TaskmergeError`.
    """
    if suite is not None:
        inputs, options = from_suite(suite, inputs, {**options, "base": base}, method=method, output=output)
        base = options.pop("base")
    spec, opening, running = split_options(method, base, output, weights, options)
    return carry_out(prepare(inputs, spec, opening, running), running)


def prepare(inputs: Arguments, spec: MergeSpec, opening: InputOptions, running: RunOptions) -> Prepared:
    """Opens headers, compares them, plans, and checks memory, disk and output paths. Reads and writes no weights."""
    points = bind_points(spec)
    if len(points) > MOST_POINTS:
        raise UsageError(
            f"the grid has {len(points)} points, more than {MOST_POINTS}", hint="write several smaller grids"
        )
    paths = output_paths(spec, running.output, points)
    check_free(paths, overwrite=running.overwrite)
    resolved = resolve(inputs, replace(opening, outputs=tuple(paths)))
    workers = running.threads or cores()
    plan = make_plan(
        spec, resolved.base, resolved.experts, workers=workers, points=points,
        max_memory=running.max_memory, resident=memory.settled_memory(),
        peak=memory.peak_memory(),
    )  # fmt: skip
    check_disk(plan, paths)
    device = device_for(running.device, spec)
    prepared = Prepared(spec, resolved, plan, tuple(points), tuple(paths), device)
    check_outputs(prepared, running)
    return prepared


def check_outputs(prepared: Prepared, running: RunOptions) -> None:
    """Refuses files of the outputs, and heads, that are there already, as staging them would, and inputs among them."""
    inputs = prepared.inputs
    check_free(prepared.paths, overwrite=running.overwrite)
    read = files_read([*inputs.experts, *([inputs.base] if inputs.base else [])])
    for point, path in zip(prepared.points, prepared.paths, strict=True):
        check_kept(lay_out(path, prepared.plan.outputs(), **_layout(path, point, running, prepared)), read)
    for folder in _heads_folders(prepared):
        for _, path, specs in head_files(prepared.plan.heads, inputs.experts, folder):
            check_kept(lay_out(path, specs, overwrite=running.overwrite), read)


def device_for(said: str, spec: MergeSpec) -> torch.device:
    """The device of the arithmetic; `auto` takes a GPU only for methods that factorise."""
    last = spec.chain()[-1]
    return named_device(said, accelerate=last.granularity(last.defaults()) == "matrix")


def carry_out(prepared: Prepared, running: RunOptions, ahead: Ahead | None = None) -> MergeReceipt:
    """Runs the plan into staged outputs, seals them with their provenance, and commits.

    `ahead` has been digesting inputs in the meantime.
    """
    started = time.perf_counter()
    plan, inputs, spec = prepared.plan, prepared.inputs, prepared.spec
    sources: list[Source] = [*inputs.experts, *([inputs.base] if inputs.base else [])]
    if any(job.reads == "matrix" for job in plan.jobs):
        load_routines()  # before anything is staged
    known = ahead.take() if ahead is not None else {}
    tallies = {id(source): Tally(_known(source, known)) for source in sources} if running.digests else {}
    warnings = [*inputs.warnings, *tokenizer_warnings(inputs.experts)]
    points = largest_first(prepared.points)
    with ExitStack() as stack:
        stack.callback(inputs.close)
        kept = _stage_heads(prepared, running, stack)  # first: an output folder must be there before its weights
        sinks = [stack.enter_context(_stage(prepared, point, running, tallies)) for point in points]
        run = Run(
            spec, plan, inputs.base, inputs.experts, points, sinks, prepared.device, tallies,
            progress_of(plan, running), earlier_points(spec, points[0]),
        )  # fmt: skip
        execute(run)
        twins = _twins(inputs.experts, tallies)
        for head, said in kept:
            head.commit(said)
        heads = [file for head, _ in kept for file in head.files]
        sealed = {id(point): _record(prepared, point, tallies, twins) for point in points}
        for point, sink in zip(points, sinks, strict=True):
            sink.commit(metadata(sealed[id(point)]))
        done = {id(point): _written(sink, heads, sealed[id(point)]) for point, sink in zip(points, sinks, strict=True)}
    found = dict.fromkeys(note for point in points for note in point.notes)
    seconds = time.perf_counter() - started
    return MergeReceipt(
        tuple(done[id(point)] for point in prepared.points), sealed[id(prepared.points[0])],
        (*plan.notes, *inputs.notes, *found), (*warnings, *twins),
        plan.bytes_read, plan.bytes_written, plan.memory, memory.peak_memory(), seconds,
    )  # fmt: skip


def _stage(
    prepared: Prepared, point: BoundPoint, running: RunOptions, tallies: Mapping[int, Tally]
) -> AbstractContextManager[Sink]:
    """The staged output of one grid point, with room for its provenance."""
    path = next(path for path, one in zip(prepared.paths, prepared.points, strict=True) if one is point)
    room = reserve(_record(prepared, point, tallies, ()), len(prepared.inputs.experts) + 1)
    return stage(path, prepared.plan.outputs(), reserve=room, **_layout(path, point, running, prepared))


def _written(sink: Sink, heads: Sequence[Path], sealed: Mapping[str, Any]) -> OutputRecord:
    """What was written at one grid point; `heads` are the files of all heads, of which its own lie beside it."""
    own = heads_folder(sink.path, sink.path.is_dir())
    files = (*sink.files, *(file for file in heads if file.parent == own))
    size = sum(file.stat().st_size for file in files)
    return OutputRecord(str(sink.path), tuple(map(str, files)), size, dict(sealed["recipe"]["options"]))


def _record(
    prepared: Prepared, point: BoundPoint, tallies: Mapping[int, Tally], warnings: Sequence[str]
) -> dict[str, Any]:
    """The provenance of one grid point; its warnings are those that the tensors themselves give rise to."""
    return provenance(
        __version__, prepared.spec.recipe(point.point), prepared.plan, prepared.inputs.experts, prepared.inputs.base,
        tallies, prepared.device.type, warnings,
    )  # fmt: skip


def _layout(path: Path, point: BoundPoint, running: RunOptions, prepared: Prepared) -> dict[str, Any]:
    """How an output is laid out; a folder also gets configuration, tokenizer and model card."""
    folder, inputs = is_folder(path), prepared.inputs
    extra = sidecars(inputs.experts, inputs.base, prepared.spec.recipe(point.point)) if folder else {}
    return {
        "overwrite": running.overwrite, "shard_size": running.shard_size, "sidecars": extra, "folder": folder
    }  # fmt: skip


def _stage_heads(prepared: Prepared, running: RunOptions, stack: ExitStack) -> list[tuple[Sink, dict[str, str]]]:
    """The heads that --heads keep leaves out of the merge."""
    return [
        head for folder in _heads_folders(prepared)
        for head in stage_heads(
            prepared.plan.heads, prepared.inputs.experts, folder, stack, version=__version__,
            overwrite=running.overwrite,
        )
    ]  # fmt: skip


def _heads_folders(prepared: Prepared) -> list[Path]:
    """Where heads go: once for outputs beside each other, once for each folder."""
    paths = prepared.paths if prepared.plan.heads else ()
    return list(dict.fromkeys(heads_folder(path, is_folder(path)) for path in paths))


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


def _known(source: Source, found: Mapping[Stamp, Mapping[str, str]]) -> dict[str, str]:
    """The SHA-256 of those tensors of a source that have been digested already, in the version that will be read."""
    files = {spec.file for spec in source.stored.values()}
    versions = {file: found[now] for file in files if (now := stamp(file)) is not None and now in found}
    return {
        name: versions[spec.file][name]
        for name, spec in source.stored.items()
        if spec.file in versions and name in versions[spec.file]
    }


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
