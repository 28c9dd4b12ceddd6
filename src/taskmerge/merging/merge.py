"""`merge`: several fine-tunings in, one checkpoint (or one per grid point) out."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.ahead import Ahead, Stamp, stamp
from taskmerge.checkpoint.identity import check_unchanged
from taskmerge.checkpoint.provenance import metadata, reserve
from taskmerge.checkpoint.writer import Sink, commit, stage
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source, Tally
from taskmerge.merging.execute import execute
from taskmerge.merging.heads import heads_folder, stage_heads
from taskmerge.merging.kernels import BoundPoint, earlier_points, largest_first
from taskmerge.merging.options import Arguments, RunOptions
from taskmerge.merging.plan import Plan
from taskmerge.merging.prepare import Prepared, heads_folders, layout_options, prepare
from taskmerge.merging.record import MergeReceipt, OutputRecord, provenance
from taskmerge.merging.request import Request, requested
from taskmerge.merging.run import Run
from taskmerge.methods.registry import DEFAULT
from taskmerge.numerics.lapack import load_routines
from taskmerge.numerics.memory import peak_memory
from taskmerge.version import __version__


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
    keywords = {"method": method, "base": base, "output": output, "weights": weights, **options}
    return merge_requested(requested(inputs, keywords, suite=suite))


def merge_requested(request: Request, ahead: Ahead | None = None) -> MergeReceipt:
    """Plans and carries out a request."""
    prepared = prepare(request.inputs, request.spec, request.opening, request.running)
    return carry_out(prepared, request.running, ahead)


def carry_out(prepared: Prepared, running: RunOptions, ahead: Ahead | None = None) -> MergeReceipt:
    """Runs the plan into staged outputs, seals them with their provenance, and commits.

    `ahead` has been digesting inputs in the meantime.
    """
    started = time.perf_counter()
    plan, inputs, spec = prepared.plan, prepared.inputs, prepared.spec
    if any(job.reads == "matrix" for job in plan.jobs):
        load_routines()  # before anything is staged
    digested = ahead.take() if ahead is not None else {}
    rows = _rows(prepared, digested if running.digests else None)
    points = largest_first(prepared.points)
    with ExitStack() as stack:
        stack.callback(inputs.close)
        kept, same = _stage_heads(prepared, running, stack)
        sinks = [stack.enter_context(_stage(prepared, point, running, rows)) for point in points]
        advance = progress_of(plan, running)
        execute(Run(spec, plan, rows, points, sinks, advance, earlier_points(spec, points[0])))
        inputs.check_unchanged()
        check_unchanged(prepared.travels.versions)
        twins = [*_twins(rows), *_idle(rows)]
        records = [_record(prepared, point, rows, twins) for point in points]
        for sink, about in (*kept, *zip(sinks, map(metadata, records), strict=True)):
            sink.seal(about)
        commit([*(head for head, _ in kept), *sinks], overwrite=running.overwrite)
        heads = [*same, *(file for head, _ in kept for file in head.files)]
        written = [_written(sink, heads, record) for sink, record in zip(sinks, records, strict=True)]
    done = {id(point): both for point, both in zip(points, zip(written, records, strict=True), strict=True)}
    outputs, sealed = zip(*(done[id(point)] for point in prepared.points), strict=True)
    told = dict.fromkeys(note for point in points for note in point.notes)
    return MergeReceipt(
        outputs, sealed[0], (*plan.notes, *inputs.notes, *told),
        (*inputs.warnings, *twins),
        plan.costs.bytes_read, plan.costs.bytes_written, plan.costs.memory, peak_memory(),
        time.perf_counter() - started,
    )  # fmt: skip


def _rows(prepared: Prepared, digested: Mapping[Stamp, Mapping[str, str]] | None) -> Rows:
    """The rows of the merge, with digests of what is read unless `digested` (what has been digested ahead) is None."""
    inputs, spec = prepared.inputs, prepared.spec
    tallies = (
        {} if digested is None else {id(source): Tally(_known_digests(source, digested)) for source in inputs.sources}
    )
    weights = torch.tensor([spec.weights.get(expert.task, 1.0) for expert in inputs.experts], dtype=torch.float64)
    dtype = torch.float64 if spec.compute_dtype == "float64" else torch.float32
    space = prepared.points[0].last.space
    return Rows(inputs.base, inputs.experts, space, weights, dtype, prepared.device, tallies)


def _stage(prepared: Prepared, point: BoundPoint, running: RunOptions, rows: Rows) -> AbstractContextManager[Sink]:
    """The staged output of one grid point, with room for its provenance."""
    path = next(path for path, other in zip(prepared.paths, prepared.points, strict=True) if other is point)
    room = reserve(_record(prepared, point, rows, ()), len(prepared.inputs.experts) + 1)
    return stage(path, prepared.plan.outputs(), reserve=room, **layout_options(prepared, point, path, running))


def _written(sink: Sink, heads: Sequence[Path], sealed: Mapping[str, Any]) -> OutputRecord:
    """What was written at one grid point; `heads` are the files of all heads, of which its own lie beside it."""
    own = heads_folder(sink.path, sink.path.is_dir())
    files = (*sink.files, *(file for file in heads if file.parent == own))
    size = sum(file.stat().st_size for file in files)
    return OutputRecord(str(sink.path), tuple(map(str, files)), size, dict(sealed["recipe"]["options"]))


def _record(prepared: Prepared, point: BoundPoint, rows: Rows, warnings: Sequence[str]) -> dict[str, object]:
    """The provenance of one grid point; its warnings are those that the tensors themselves give rise to."""
    return provenance(__version__, prepared.spec.recipe(point.point), prepared.plan, rows, warnings)


def _stage_heads(
    prepared: Prepared, running: RunOptions, stack: ExitStack
) -> tuple[list[tuple[Sink, dict[str, str]]], list[Path]]:
    """The heads that --heads keep leaves out of the merge, and the files that hold such a head already."""
    staged, same = list[tuple[Sink, dict[str, str]]](), list[Path]()
    for folder in heads_folders(prepared):
        new, there = stage_heads(
            prepared.plan.heads, prepared.inputs.experts, folder, stack, version=__version__,
            overwrite=running.overwrite, beside=folder.parent if folder.parent in prepared.paths else None,
        )  # fmt: skip
        staged, same = [*staged, *new], [*same, *there]
    return staged, same


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


def _known_digests(source: Source, digested: Mapping[Stamp, Mapping[str, str]]) -> dict[str, str]:
    """The SHA-256 of those tensors of a source that have been digested already, in the version that will be read."""
    files = {spec.file for spec in source.stored.values()}
    versions = {file: digested[now] for file in files if (now := stamp(file)) is not None and now in digested}
    return {
        name: versions[spec.file][name]
        for name, spec in source.stored.items()
        if spec.file in versions and name in versions[spec.file]
    }


def _idle(rows: Rows) -> list[str]:
    """Warnings for experts that change nothing: adapters whose products are zero, and what is the base itself."""
    warnings = []
    base = None if rows.base is None else rows.tallies.get(id(rows.base))
    for expert in rows.experts:
        tally = rows.tallies.get(id(expert))
        if isinstance(expert, AdapterSource):
            if expert.idle:
                warnings.append(f"{expert.task} changes nothing: its B or A is zero throughout, as before training")
        elif expert.kind == "weight" and tally and base and rows.base and tally.same_as(base, expert, rows.base):
            warnings.append(f"{expert.task} equals the base, tensor for tensor: it changes nothing")
    return warnings


def _twins(rows: Rows) -> list[str]:
    """Warnings for experts of the same content."""
    seen: dict[str, str] = {}
    warnings = []
    for expert in rows.experts:
        if id(expert) in rows.tallies:
            digest, _ = rows.tallies[id(expert)].finish(expert.stored)
            if digest in seen:
                warnings.append(f"{seen[digest]} and {expert.task} are the same, tensor for tensor")
            seen.setdefault(digest, expert.task)
    return warnings
