"""Judges checkpoints on a split without labels: each task's outputs against those of the task's own expert."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.checkpoint.hub import resolve
from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.errors import UsageError
from taskmerge.evaluation.checkpoints import Encoder, check_encoders, encoders
from taskmerge.evaluation.criteria import CRITERIA
from taskmerge.evaluation.heads import Heads
from taskmerge.evaluation.workload import check_split, named_tasks
from taskmerge.experts.arguments import Arguments
from taskmerge.models.backbones import build
from taskmerge.models.outputs import Forward
from taskmerge.specs.suite import Suite, Task
from taskmerge.types import Note, Progress, unheard, unwatched

ADAPT = "adapt"


@dataclass(frozen=True, slots=True)
class Judged:
    """What the criteria say of one checkpoint on one task: values by criterion, over n items."""

    encoder: str
    task: str
    n: int
    values: Mapping[str, float]


def judge(
    checkpoints: Arguments, *, suite: Suite, split: str = ADAPT, tasks: Sequence[str] | None = None,
    limit: int | None = None, seed: int = 0, batch_size: int, device: torch.device, cache: Path | None = None,
    skip_bad: bool = False, heads: str | Path | None = None, allow_pickle: bool = False, map: Sequence[str] = (),
    progress: Progress | None = None, note: Note = unheard,
) -> tuple[Judged, ...]:  # fmt: skip
    """Every criterion of every checkpoint (experts and base left out) on every task that a criterion judges.

    Those tasks must have the split; `note` hears of the others before anything is done. Labels are never read. `heads`
    is a folder that replaces the suite's. Raises a TaskmergeError as `evaluate` does.
    """
    picked = replace(suite, tasks=judged_tasks(suite, tasks, split, note))
    if not picked.tasks:
        return ()
    with ExitStack() as stack:
        opened = encoders(
            checkpoints, picked, resolve=resolve, stack=stack, with_experts=True, allow_pickle=allow_pickle
        )
        experts = [encoder for encoder in opened if encoder.kind == "expert"]
        candidates = [encoder for encoder in opened if encoder.kind not in ("base", "expert")]
        if not candidates:
            raise UsageError("there is no checkpoint to rank", hint="give merged checkpoints: merged-*.safetensors")
        backbone = build(picked.backbone, resolve=resolve, renamings=map)
        given = Heads(picked, backbone, device, stack, Path(heads) if heads else None, allow_pickle)
        forward = Forward(backbone, device, batch_size, given.base, progress or unwatched, note)
        check_encoders(opened, backbone, given.base)
        with forward.room():
            given.load(opened)
        loading = LoadOptions(resolve=resolve, limit=limit, seed=seed, cache=cache, skip_bad=skip_bad)
        data = [(task, load_unlabelled(task, split, backbone.prepare, loading)) for task in picked.tasks]
        forward.total = (len(candidates) + 1) * sum(len(items) for _, items in data)
        wanted = {task.name: outputs for expert in experts for task, outputs in _outputs(forward, given, expert, data)}
        judged = tuple(
            _judged(encoder, task, outputs, wanted[task.name])
            for encoder in candidates
            for task, outputs in _outputs(forward, given, encoder, data)
        )
        given.check_unchanged(opened)
    return judged


def judged_tasks(suite: Suite, names: Sequence[str] | None, split: str, note: Note) -> tuple[Task, ...]:
    """The tasks of these names (None: all) that a criterion judges; `note` hears of the others.

    Raises UsageError for a name that no task has, and for a judged task without the split.
    """
    tasks = named_tasks(suite, names)
    judged = tuple(task for task in tasks if any(criterion.judges(task.kind) for criterion in CRITERIA.values()))
    for task in judged:
        check_split(task, split, suite)
    others = [task.name for task in tasks if task not in judged]
    if others:
        note(f"judged on tasks of classification and regression only: not on {', '.join(others)}")
    return judged


def _outputs(
    forward: Forward, heads: Heads, encoder: Encoder, data: Sequence[tuple[Task, Items]]
) -> Iterator[tuple[Task, Tensor]]:
    """(task, outputs) for every task that the encoder is judged on; an expert only on its own."""
    forward.fill(encoder.row, encoder.checkpoint, encoder.blocks)
    for task, items in data:
        if encoder.scored_on(task):
            (outputs,) = forward.outputs(items.inputs, [(task, heads.of(encoder, task))])
            yield task, outputs.values


def _judged(encoder: Encoder, task: Task, outputs: Tensor, expert: Tensor) -> Judged:
    values = {name: criterion.of(task.kind, outputs, expert) for name, criterion in CRITERIA.items()}
    return Judged(
        encoder.row, task.name, len(outputs), {name: value for name, value in values.items() if value is not None}
    )
