"""Opens everything that sweeps of one suite share: experts, encoder, heads, items, and what it is known by."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskmerge.adaptation.opening import files_digest, spots_of, tensors_digest
from taskmerge.adaptation.weights import live_tensors
from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.hub import resolve
from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.evaluation.workload import named_tasks
from taskmerge.experts.arguments import named_files
from taskmerge.experts.sources import CheckpointSource
from taskmerge.merging.prepare import Prepared
from taskmerge.merging.request import requested
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.fill import fill, lend
from taskmerge.models.heads import load_head
from taskmerge.models.outputs import Forward
from taskmerge.numerics.device import named_device
from taskmerge.specs.suite import Suite, Task
from taskmerge.workflows.adapt_request import without_heads
from taskmerge.workflows.sweeps.encoder import Encoder, spots_in
from taskmerge.workflows.sweeps.judge import Examined, Judge, as_labels
from taskmerge.workflows.sweeps.points import FOLDER, code_version
from taskmerge.workflows.sweeps.request import LOSSES, SCORED, SweepRequest, check_data

UNWRITTEN = "unwritten.safetensors"
"""What the merge that is planned, and never written, would be called."""


@dataclass(frozen=True)
class Opened:
    """What sweeps work with. `scores` judges by the split's labels (None where nobody asks for scores), `losses` by
    those that `asked.labels` means; `identity` is what every result depends on, as plain values."""

    asked: SweepRequest
    tasks: Mapping[str, Task]
    encoder: Encoder
    module: nn.Module
    scores: Judge | None
    losses: Judge | None
    identity: Mapping[str, Any]

    @property
    def judge(self) -> Judge:
        """The judge of scores. It is there where a kind that needs it was asked for."""
        if self.scores is None:
            raise ValueError("no labels were read")
        return self.scores

    def identity_of(self, kind: str) -> dict[str, Any]:
        """What the results of one kind depend on, its own options aside."""
        judge = self.losses if kind in LOSSES else self.scores
        examined = {} if judge is None else judge.tasks
        return {**self.identity, "items": {name: [one.fingerprint, one.source] for name, one in examined.items()}}

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are merged and scored, in the suite's order."""
        return tuple(self.tasks)


def open_sweep(asked: SweepRequest, stack: ExitStack) -> Opened:
    """Opens headers, builds the encoder, reads items and heads. `stack` closes what is open.

    Raises a TaskmergeError for what is missing or does not fit: UsageError for a split without labels where they are
    needed, and for experts that no task is named like.
    """
    check_data(asked)
    suite = _suite_of(asked)
    prepared = _prepared(asked, suite)
    stack.callback(prepared.inputs.close)
    for text in (*prepared.inputs.notes, *prepared.inputs.warnings, *prepared.plan.notes):
        asked.note(text)
    _check_kinds(prepared)
    tasks = _tasks_of(asked, suite, prepared)
    device = named_device(asked.device, accelerate=True)
    backbone = build(suite.backbone, resolve=resolve, renamings=asked.merging.get("map", ()))
    base = None if suite.base is None else stack.enter_context(open_plain(resolve(suite.base)))
    forward = Forward(backbone, device, asked.batch_size, base, note=asked.note)
    whole = {source.task: source.checkpoint for source in prepared.inputs.experts
             if isinstance(source, CheckpointSource) and source.kind == "weight"}  # fmt: skip
    complete = next(iter(whole.values()), base)
    if complete is None:
        raise UsageError("no expert is a whole checkpoint and there is no base", where=suite.where, hint="add `base:`")
    fill(backbone, complete, base)
    if base is not None:
        lend(backbone, [output.name for output in prepared.plan.outputs()], base)
    encoder = _encoder(asked, prepared, backbone, device)
    reading = _Reading(asked, backbone, base, whole, forward)
    heads = {name: reading.head(task) for name, task in tasks.items()}
    scores = reading.judge({name: reading.labelled(task, heads[name]) for name, task in tasks.items()}
                           if SCORED & {*asked.kinds} else {})  # fmt: skip
    losses = reading.judge({name: reading.for_losses(task, heads[name], scores, encoder)
                            for name, task in tasks.items()} if LOSSES & {*asked.kinds} else {})  # fmt: skip
    identity = _identity(asked, prepared, tasks, heads, device)
    return Opened(asked, tasks, encoder, backbone.module, scores, losses, identity)


# --- what is merged --------------------------------------------------------------------------------------------


def _suite_of(asked: SweepRequest) -> Suite:
    """The suite, of the tasks that were named."""
    return replace(asked.suite, tasks=named_tasks(asked.suite, asked.tasks))


def _prepared(asked: SweepRequest, suite: Suite) -> Prepared:
    """The merge that is swept, planned: about the base where there is one, else about the average."""
    named_files(asked.inputs, "a sweep")
    based = suite.base is not None or asked.merging.get("base") is not None
    keywords = {
        **asked.merging, "method": "truncated_task_arithmetic" if based else "cart", "threads": asked.threads,
        "device": asked.device, "output": asked.folder / FOLDER / UNWRITTEN, "overwrite": True,
    }  # fmt: skip
    _, prepared = without_heads(requested(asked.inputs, keywords, suite=suite))
    return prepared


def _check_kinds(prepared: Prepared) -> None:
    """Refuses differences from an average: sweeps form each expert itself, which is not known from them."""
    centred = next((source for source in prepared.inputs.experts if source.kind == "centred"), None)
    if centred is not None:
        hint = "give the experts themselves, or task vectors from the base"
        raise Mismatch("holds differences from an average, and sweeps need experts", where=centred.where, hint=hint)


def _tasks_of(asked: SweepRequest, suite: Suite, prepared: Prepared) -> dict[str, Task]:
    """The suite's tasks whose experts are merged; experts that were given take the place of the suite's own."""
    given = dict(named_files(asked.inputs, "a sweep"))
    merged = {source.task for source in prepared.inputs.experts}
    tasks = {task.name: task for task in suite.tasks}
    strangers = sorted(merged - tasks.keys())
    if strangers:
        what = f"{listed(strangers)} are no tasks of the suite, which has {listed(tasks)}"
        raise UsageError(what, where=suite.where, hint=f"name experts by their tasks, such as {next(iter(tasks))}=FILE")
    lacking = [name for name in tasks if name not in merged]
    if lacking:
        asked.note(f"no expert of {listed(lacking)} is merged: left out")
    return {name: replace(task, expert=given.get(name, task.expert)) for name, task in tasks.items() if name in merged}


def _encoder(asked: SweepRequest, prepared: Prepared, backbone: Backbone, device: torch.device) -> Encoder:
    plan, inputs = prepared.plan, prepared.inputs
    units = [job.unit for job in plan.jobs if job.action == "merge"]
    spots = spots_in(plan.jobs, spots_of(backbone, units))
    jobs = sorted((job for job in plan.jobs if job.name in spots), key=lambda job: (-job.memory, job.name))
    dtype = torch.float64 if prepared.spec.compute_dtype == "float64" else torch.float32
    return Encoder(
        jobs, spots, live_tensors(backbone.module), inputs.experts, inputs.base, dtype, device, plan.costs.workers,
        plan.costs.in_flight, prepared.spec.svd,
    )  # fmt: skip


# --- what it is judged by --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """Reads heads, items and labels of tasks."""

    asked: SweepRequest
    backbone: Backbone
    base: Checkpoint | None
    whole: Mapping[str, Checkpoint]
    forward: Forward

    @property
    def loading(self) -> LoadOptions:
        asked = self.asked
        return LoadOptions(resolve=resolve, limit=asked.limit, seed=asked.seed, cache=asked.cache, note=asked.note)

    def head(self, task: Task) -> Head:
        expert = self.whole.get(task.name)
        if task.head == "expert" and expert is None:
            what = f"`head: expert`, and the expert of `{task.name}` is a file of differences, without a classifier"
            raise UsageError(what, where=task.place or None, hint="name a head file: `head: heads/…safetensors`")
        head = load_head(task, self.backbone, resolve=resolve, base=self.base, expert=expert)
        return head.to(self.forward.device) if isinstance(head, nn.Module) else head

    def labelled(self, task: Task, head: Head) -> Examined:
        """A task with the split's labels."""
        found = load_labelled(task, self.asked.split, self.backbone.prepare, self.loading)
        return Examined(task, found.items, head, found.labels, "true", found.fingerprint)

    def for_losses(self, task: Task, head: Head, scores: Judge | None, encoder: Encoder) -> Examined:
        """A task with the labels that losses are taken against."""
        wanted = self.asked.labels
        if wanted == "true" or (wanted == "auto" and task.splits[self.asked.split].y is not None):
            return self.labelled(task, head) if scores is None else scores.tasks[task.name]
        items = load_unlabelled(task, self.asked.split, self.backbone.prepare, self.loading)
        return self._by_expert(task, items, head, encoder)

    def _by_expert(self, task: Task, items: Items, head: Head, encoder: Encoder) -> Examined:
        """The expert's own predictions in the place of labels."""
        encoder.average([task.name])
        unlabelled = Examined(task, items, head, torch.empty(0), "expert", items.fingerprint)
        outputs = Judge(self.forward, {task.name: unlabelled}, self.asked.seed).outputs(
            f"the expert of {task.name}", task.name
        )
        labels: Tensor = as_labels(task, outputs)
        return replace(unlabelled, labels=labels)

    def judge(self, examined: Mapping[str, Examined]) -> Judge | None:
        return Judge(self.forward, examined, self.asked.seed) if examined else None


# --- what it is known by ---------------------------------------------------------------------------------------


def _identity(
    asked: SweepRequest, prepared: Prepared, tasks: Mapping[str, Task], heads: Mapping[str, Head],
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """What every result depends on: content of experts, base and heads; options; code, torch, kind of device."""
    inputs, spec = prepared.inputs, prepared.spec
    return {
        "suite": asked.suite.name, "split": asked.split, "limit": asked.limit, "seed": asked.seed,
        "experts": {source.task: files_digest(source) for source in inputs.experts},
        "base": None if inputs.base is None else files_digest(inputs.base),
        "heads": {name: tensors_digest(head) for name, head in heads.items() if isinstance(head, nn.Module)},
        "metrics": {name: task.metric for name, task in tasks.items()},
        "merge": {name: value for name, value in spec.recipe({}).items() if name != "taskmerge"},
        "batch_size": asked.batch_size, "code": code_version(), "torch": torch.__version__, "device": device.type,
    }  # fmt: skip


def needs(opened: Opened, kind: str, *, base: bool = False, tasks: int = 1) -> None:
    """Raises UsageError where a kind of sweep lacks a base, or has too few tasks."""
    if base and opened.encoder.base is None:
        raise UsageError(f"the sweep `{kind}` needs the base", where="--base", hint="name the base, or add `base:`")
    if len(opened.tasks) < tasks:
        what = f"the sweep `{kind}` needs {tasks} tasks or more, and this is {listed(opened.names) or 'none'}"
        raise UsageError(what, where="--sweep", hint="give more experts, or leave this kind out")
