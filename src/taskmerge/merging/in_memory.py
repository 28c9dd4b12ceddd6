"""`merge` of state dicts: tensors in, tensors out. The plan, the engine and the checks are those of files."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import UsageError
from taskmerge.merging.execute import execute
from taskmerge.merging.kernels import earlier_points
from taskmerge.merging.look import idle, rows_of, twins
from taskmerge.merging.options import RunOptions
from taskmerge.merging.prepare import prepare
from taskmerge.merging.request import Request
from taskmerge.merging.run import Run, progress_of
from taskmerge.numerics.lapack import load_routines
from taskmerge.specs.keywords import flag_of

OF_FILES = ("overwrite", "shard_size", "with_code", "as_adapter")
"""Options that say how files are written."""


@dataclass(frozen=True)
class MergedTensors:
    """The merged model by tensor names, in memory of its own on the CPU, and what is to be told of it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class Gathered:
    """Takes merged tensors in pieces, into memory that is theirs alone. Safe to use from several threads."""

    def __init__(self, specs: Sequence[OutputSpec]) -> None:
        self.tensors = {spec.name: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs}

    def write(self, name: str, data: Tensor, start_element: int = 0) -> None:
        """Elements of a tensor from `start_element` on."""
        self.tensors[name].view(-1)[start_element : start_element + data.numel()] = data.reshape(-1)


@torch.inference_mode(False)  # its tensors could be written by this thread alone
def merge_in_memory(request: Request) -> MergedTensors:
    """Merges state dicts. Raises what `merge` raises, and `UsageError` for a grid and for options of files."""
    running, plain = request.running, RunOptions()
    for name in (field.name for field in fields(plain) if field.name in OF_FILES):
        if getattr(running, name) != getattr(plain, name):
            raise UsageError("says how a file is written", where=flag_of(name), hint="name one with `output`")
    prepared = prepare(request.inputs, request.spec, request.opening, running)
    plan, inputs, points = prepared.plan, prepared.inputs, prepared.points
    with ExitStack() as stack:
        stack.callback(inputs.close)
        if len(points) > 1:
            hint = "give one value each, or name a file with `output`: every point gets its own"
            raise UsageError(f"a grid of {len(points)} points is as many models", where="inputs", hint=hint)
        if any(job.reads == "matrix" for job in plan.jobs):
            load_routines()
        rows, gathered = rows_of(prepared, {} if running.digests else None), Gathered(plan.outputs())
        before = earlier_points(request.spec, points[0])
        execute(Run(request.spec, plan, rows, points, [gathered], progress_of(plan, running), before))
        inputs.check_unchanged()
        warnings = (*inputs.warnings, *twins(rows), *idle(rows))
    return MergedTensors(gathered.tensors, (*plan.notes, *inputs.notes, *points[0].notes), warnings)
