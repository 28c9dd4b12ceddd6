"""A merge into files: several fine-tunings in, one checkpoint (or one per grid point) out."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.checkpoint.cards import CARD
from taskmerge.checkpoint.companions import described
from taskmerge.checkpoint.identity import check_unchanged
from taskmerge.checkpoint.provenance import metadata, reserve, sealed
from taskmerge.checkpoint.writer import Sink, commit, stage
from taskmerge.experts.rows import Rows
from taskmerge.merging.as_adapter import merge_as_adapter
from taskmerge.merging.execute import execute
from taskmerge.merging.heads import heads_folder, stage_heads
from taskmerge.merging.kernels import BoundPoint, earlier_points, largest_first
from taskmerge.merging.look import idle, rows_of, twins
from taskmerge.merging.options import RunOptions
from taskmerge.merging.outputs import is_folder
from taskmerge.merging.prepare import Prepared, heads_folders, layout_options, prepare
from taskmerge.merging.record import MergeReceipt, OutputRecord, provenance
from taskmerge.merging.request import Request
from taskmerge.merging.run import Run, progress_of
from taskmerge.numerics.lapack import load_routines
from taskmerge.numerics.memory import peak_memory
from taskmerge.version import __version__


def merge_requested(request: Request, ahead: Ahead | None = None) -> MergeReceipt:
    """Plans and carries out a request."""
    if request.running.as_adapter:
        return merge_as_adapter(request, ahead)
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
    rows = rows_of(prepared, digested if running.digests else None)
    points = largest_first(prepared.points)
    with ExitStack() as stack:
        stack.callback(inputs.close)
        kept, same = _stage_heads(prepared, running, stack)
        beside = described({**prepared.travels.files, CARD: b""}) if any(map(is_folder, prepared.paths)) else {}
        before = _record(prepared, points[0], rows, (), beside)
        sinks = [stack.enter_context(_stage(prepared, point, running, before)) for point in points]
        advance = progress_of(plan, running)
        execute(Run(spec, plan, rows, points, sinks, advance, earlier_points(spec, points[0])))
        inputs.check_unchanged()
        check_unchanged(prepared.travels.versions)
        odd = [*twins(rows), *idle(rows)]
        record = _record(prepared, points[0], rows, odd, beside)
        records = [sealed({**record, "recipe": spec.recipe(point.values)}) for point in points]
        for sink, about in (*kept, *zip(sinks, map(metadata, records), strict=True)):
            sink.seal(about)
        commit([*(head for head, _ in kept), *sinks], overwrite=running.overwrite)
        heads = [*same, *(file for head, _ in kept for file in head.files)]
        written = [_written(sink, heads, record) for sink, record in zip(sinks, records, strict=True)]
    done = {id(point): both for point, both in zip(points, zip(written, records, strict=True), strict=True)}
    outputs, provenances = zip(*(done[id(point)] for point in prepared.points), strict=True)
    told = dict.fromkeys(note for point in points for note in point.notes)
    return MergeReceipt(
        outputs, provenances[0], (*plan.notes, *inputs.notes, *told),
        (*inputs.warnings, *odd),
        plan.costs.bytes_read, plan.costs.bytes_written, plan.costs.memory, peak_memory(),
        time.perf_counter() - started,
    )  # fmt: skip


def _stage(
    prepared: Prepared, point: BoundPoint, running: RunOptions, record: Mapping[str, object]
) -> AbstractContextManager[Sink]:
    """The staged output of one grid point, with room for its provenance: what is known of that of any point."""
    path = next(path for path, other in zip(prepared.paths, prepared.points, strict=True) if other is point)
    room = reserve({**record, "recipe": prepared.spec.recipe(point.values)}, len(prepared.inputs.experts) + 1)
    return stage(path, prepared.plan.outputs(), reserve=room, **layout_options(prepared, point, path, running))


def _written(sink: Sink, heads: Sequence[Path], record: Mapping[str, Any]) -> OutputRecord:
    """What was written at one grid point; `heads` are the files of all heads, of which its own lie beside it."""
    own = heads_folder(sink.path, sink.path.is_dir())
    files = (*sink.files, *(file for file in heads if file.parent == own))
    size = sum(file.stat().st_size for file in files)
    return OutputRecord(str(sink.path), tuple(map(str, files)), size, dict(record["recipe"]["options"]))


def _record(
    prepared: Prepared, point: BoundPoint, rows: Rows, warnings: Sequence[str], beside: Mapping[str, object]
) -> dict[str, object]:  # fmt: skip
    """The provenance of one grid point; its warnings are those that the tensors themselves give rise to."""
    recipe = prepared.spec.recipe(point.values)
    return provenance(__version__, recipe, prepared.plan, rows, warnings, beside)


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
