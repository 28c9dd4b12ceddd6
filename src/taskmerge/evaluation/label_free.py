"""Judges checkpoints on a split without labels: each task's outputs against those of the task's own expert."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.checkpoint.hub import resolve
from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.errors import BadNumber, UsageError
from taskmerge.evaluation.checkpoints import Arguments, Encoder, encoders
from taskmerge.evaluation.criteria import CRITERIA
from taskmerge.evaluation.faults import blamed, check_fits, check_outputs
from taskmerge.evaluation.heads import Heads
from taskmerge.evaluation.workload import chosen
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone
from taskmerge.models.encode import encode
from taskmerge.models.fill import fill
from taskmerge.specs.suite import Suite, Task

ADAPT = "adapt"
Progress = Callable[[int, int | None, str], None]
"""Called with samples done, samples in all, and the checkpoint."""


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
    skip_bad: bool = False, heads: str | Path | None = None, allow_pickle: bool = False,
    progress: Progress | None = None,
) -> tuple[Judged, ...]:  # fmt: skip
    """Every criterion of every checkpoint (experts and base left out) on every task that has the split.

    Labels are never read. `heads` is a folder that replaces the suite's. Raises a TaskmergeError as `evaluate` does.
    """
    picked = replace(suite, tasks=chosen(suite, tasks, split))
    with ExitStack() as stack:
        opened = encoders(
            checkpoints, picked, resolve=resolve, stack=stack, with_experts=True, allow_pickle=allow_pickle
        )
        candidates = [one for one in opened if one.kind not in ("base", "expert")]
        if not candidates:
            raise UsageError("there is no checkpoint to rank", hint="give merged checkpoints: merged-*.safetensors")
        backbone = build(picked.backbone, resolve=resolve)
        backbone.module.to(device).eval()
        given = Heads(picked, backbone, device, stack, Path(heads) if heads else None, allow_pickle)
        check_fits(backbone, [one.checkpoint for one in opened], given.base)
        given.load(opened)
        loading = LoadOptions(resolve=resolve, limit=limit, seed=seed, cache=cache, skip_bad=skip_bad)
        items = {task.name: load_unlabelled(task, split, backbone.prepare, loading) for task in picked.tasks}
        run = _Outputs(picked, backbone, given, items, batch_size, device, progress, len(candidates) + 1)
        experts = {task.name: found for one in opened if one.kind == "expert" for task, found in run.of(one)}
        return tuple(_judged(one, task, found, experts[task.name]) for one in candidates for task, found in run.of(one))


def _judged(encoder: Encoder, task: Task, outputs: Tensor, expert: Tensor) -> Judged:
    found = {name: one.of(task.kind, outputs, expert) for name, one in CRITERIA.items()}
    return Judged(
        encoder.row, task.name, len(outputs), {name: value for name, value in found.items() if value is not None}
    )


@dataclass
class _Outputs:
    """Outputs of encoders on all tasks' items."""

    suite: Suite
    backbone: Backbone
    heads: Heads
    items: Mapping[str, Items]
    batch_size: int
    device: torch.device
    progress: Progress | None
    passes: int
    done: int = 0

    def of(self, encoder: Encoder) -> Iterator[tuple[Task, Tensor]]:
        """(task, outputs) for every task that the encoder is scored on; an expert's is its own."""
        fill(self.backbone, encoder.checkpoint, self.heads.base)
        total = self.passes * sum(map(len, self.items.values()))

        def step(count: int) -> None:
            self.done += count
            if self.progress is not None:
                self.progress(self.done, total, encoder.row)

        for task in self.suite.tasks:
            if encoder.own_task not in (None, task.name):
                continue
            inputs = self.items[task.name].inputs
            features = encode(
                self.backbone.module, inputs, batch_size=self.batch_size, device=self.device, progress=step
            )
            with torch.inference_mode():
                outputs = self.heads.of(encoder, task)(features).cpu()
            try:
                check_outputs(outputs, f"checkpoint `{encoder.row}` on task `{task.name}`")
            except BadNumber as error:
                raise blamed(error, encoder.checkpoint) from error
            yield task, outputs
