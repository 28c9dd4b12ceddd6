"""What adaptation works with before anything is learnt: items without labels, heads, the experts' word on items."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from taskmerge.adaptation.objectives import INSTEAD, TaskObjective, objective_of
from taskmerge.adaptation.teachers import Teacher, TeacherCache
from taskmerge.adaptation.weights import live_tensors
from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.dtypes import bytes_of
from taskmerge.checkpoint.hub import resolve
from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.experts.lora_names import is_adapter
from taskmerge.experts.rows import Rows
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Unit
from taskmerge.methods.adaptive import Parts
from taskmerge.models.contract import Backbone
from taskmerge.models.encode import encode
from taskmerge.models.fill import fill
from taskmerge.models.heads import load_head
from taskmerge.processes import ALONE, Group
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite, Task
from taskmerge.types import Note, Space, unheard

ENCODED = 64
"""Items that encoders without gradients take at a time."""


@dataclass(frozen=True)
class Place:
    """Where adaptation runs: the backbone on its device, so many threads, what hears notes, the processes that share
    the work."""

    backbone: Backbone
    device: torch.device
    workers: int = 1
    note: Note = unheard
    group: Group = ALONE

    @property
    def module(self) -> nn.Module:
        return self.backbone.module

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's parameters, and so of everything that learns."""
        return next(self.module.parameters()).dtype


@dataclass(frozen=True)
class OpenedTask:
    """One task with what it is taught by: its unlabelled items, its original head, its objective; `own_head` and
    `own_adapter` are what it starts with where an earlier run has learnt them."""

    task: Task
    items: Items
    head: nn.Module
    objective: TaskObjective
    own_head: nn.Module | None = None
    own_adapter: nn.Module | None = None


@dataclass(frozen=True)
class Opened:
    """The tasks that take part, the suite's base, and those tasks whose experts are merged but not heard.

    `whole` are the experts that are whole checkpoints, by task; `complete` is the checkpoint that fills what of the
    backbone no expert has.
    """

    tasks: tuple[OpenedTask, ...]
    left_out: tuple[str, ...]
    base: Checkpoint | None
    complete: Checkpoint
    whole: Mapping[str, Checkpoint] = field(default_factory=dict)


@dataclass(frozen=True)
class Experts:
    """The experts as they are merged: sources by task, the tensors of an encoder, and where these stand in it;
    with the digests of the files. `kept` are tensors that one source gives unmerged."""

    rows: Rows
    units: Sequence[Unit]
    spots: Mapping[str, str]
    digests: Mapping[str, str]
    base_digest: str = ""
    kept: Sequence[tuple[Source, Unit]] = ()

    def source(self, task: str) -> Source:
        return next(expert for expert in self.rows.experts if expert.task == task)


def open_tasks(
    suite: Suite, parts: Parts, spec: AdaptSpec, place: Place, stack: ExitStack,
    cache: Path | None,
) -> Opened:  # fmt: skip
    """Loads items and heads of the tasks. Raises a TaskmergeError that names what is missing or doesn't fit."""
    base = None if suite.base is None else stack.enter_context(open_plain(resolve(suite.base)))
    loading = LoadOptions(resolve=resolve, limit=spec.limit, seed=spec.seed, cache=cache, note=place.note)
    opened, left_out = [], []
    experts: dict[str, Checkpoint | None] = {}
    for task in suite.tasks:
        experts[task.name] = expert = _plain(task, suite, stack)
        objective = objective_of(task.kind, parts.objective, parts.on, parts.filter)
        if objective is None:
            left_out.append(task.name)
            continue
        _check_split(task, spec.adapt_split, suite)
        if task.head == "expert" and expert is None:
            what = f"`head: expert`, and the expert of `{task.name}` is a file of differences, without a classifier"
            raise UsageError(what, where=task.place or suite.where, hint="name a head file: `head: heads/…safetensors`")
        head = load_head(task, place.backbone, resolve=resolve, base=base, expert=expert)
        if not isinstance(head, nn.Module):
            raise TypeError("a suite's heads are modules")
        _check_entropy(task, head, objective)
        items = load_unlabelled(task, spec.adapt_split, place.backbone.prepare, loading)
        opened.append(OpenedTask(task, items, head.to(place.device, place.dtype), objective))
    if left_out:
        place.note(
            f"entropy says nothing about {listed(left_out)}: left to the other tasks (--objective self takes "
            f"{'it' if len(left_out) == 1 else 'them'} in)"
        )
    if not opened:
        kinds = ", ".join(sorted({task.kind for task in suite.tasks} & INSTEAD.keys()))
        raise UsageError(
            f"`{parts.objective}` says nothing about any task of this suite ({kinds})", where="--objective",
            hint="--objective self compares with the experts' own outputs",
        )  # fmt: skip
    whole = {name: own for name, own in experts.items() if own is not None}
    complete = next(iter(whole.values()), base)
    if complete is None:
        raise UsageError("no expert is a whole checkpoint and there is no base", where=suite.where, hint="add `base:`")
    return Opened(tuple(opened), tuple(left_out), base, complete, whole)


def _plain(task: Task, suite: Suite, stack: ExitStack) -> Checkpoint | None:
    """A task's expert as a checkpoint, None for an adapter or task vectors."""
    if task.expert is None:
        hint = "give it a line `expert: FILE`, or leave it out with --tasks"
        raise UsageError(f"task `{task.name}` has no expert", where=task.place or suite.where, hint=hint)
    path = resolve(task.expert)
    if is_adapter(path) or path.name.endswith((".vector.safetensors", ".factors.safetensors")):
        return None
    return stack.enter_context(open_plain(path))


def _check_split(task: Task, split: str, suite: Suite) -> None:
    if split not in task.splits:
        hint = f"it has {', '.join(task.splits)}: --adapt-split NAME"
        raise UsageError(f"task `{task.name}` has no split `{split}`", where=task.place or suite.where, hint=hint)


def _check_entropy(task: Task, head: nn.Module, objective: TaskObjective) -> None:
    """Refuses losses between class scores where there is one score: they are constant."""
    if task.kind == "classification" and getattr(head, "outputs", 2) < 2 and objective.on == "outputs":
        what = f"the head of `{task.name}` has one output: `{objective.name}` is the same whatever it says"
        raise Mismatch(what, where=task.place or None, hint="say `kind: regression` if it is a value")


# --- the experts' word -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teaching:
    """How experts are asked: on what places of their items, with their features or without, scaled towards the base."""

    scale: float = 1.0
    features: bool = False
    cache: TeacherCache = field(default_factory=lambda: TeacherCache(None))
    backbone: str = ""


def taught(opened: OpenedTask, experts: Experts, filled: Opened, place: Place, teaching: Teaching) -> Teacher:
    """What a task's expert makes of all of its items, by its own encoder and the original head.

    The backbone holds that expert afterwards.
    """
    source = experts.source(opened.task.name)
    head_digest = tensors_digest(opened.head)

    def compute() -> Teacher:
        fill_expert(experts, source, filled, place, teaching.scale)
        features = features_of(place, opened.items)
        return Teacher(
            head_outputs(opened.head, features, place.device), features.cpu() if teaching.features else _none()
        )

    key = {
        "expert": experts.digests[source.task], "head": head_digest, "scale": teaching.scale,
        "features": teaching.features,
        "backbone": teaching.backbone, "device": place.device.type, "torch": torch.__version__,
        "dtype": str(place.dtype),
        "base": "" if source.kind == "weight" and teaching.scale == 1 else experts.base_digest,
    }  # fmt: skip
    return teaching.cache.teacher(key, opened.items, compute)


def fill_expert(experts: Experts, source: Source, filled: Opened, place: Place, scale: float = 1.0) -> None:
    """Puts θ₀ + scale τ_t (the expert itself at 1) into the backbone, whatever kind of file holds it.

    What is not merged is the expert's own. Raises UsageError for another scale where there is no base.
    """
    if scale != 1 and experts.rows.base is None:
        what = f"experts scaled by {scale:g} lie between the base and themselves, and there is no base"
        raise UsageError(what, where="--teacher-scale", hint="add `base:` to the suite, or leave it out")
    fill(place.backbone, filled.whole.get(source.task, filled.complete), filled.base)
    space: Space = "weight" if scale == 1 else "delta"
    rows = replace(experts.rows, experts=[source], weights=torch.ones(1, dtype=torch.float64), space=space)
    slots = live_tensors(place.module)
    for unit in experts.units:
        origin, (row,) = rows.of(unit, tallied=False)
        _put(unit, row if scale == 1 else origin + scale * row, experts.spots, slots)


def fill_kept(experts: Experts, place: Place) -> None:
    """Puts the tensors that one source gives, unmerged, into the backbone."""
    slots = live_tensors(place.module)
    for source, unit in experts.kept:
        rows = replace(experts.rows, experts=[source], weights=torch.ones(1, dtype=torch.float64), space="weight")
        _put(unit, rows.of(unit, tallied=False)[1][0], experts.spots, slots)


def _put(unit: Unit, values: Tensor, spots: Mapping[str, str], slots: Mapping[str, Tensor]) -> None:
    """Copies a tensor's values, flat, to where its parts stand."""
    offset = 0
    for part in unit.parts:
        if part.name in spots:
            target = slots[spots[part.name]]
            target.copy_(values[offset : offset + part.numel].view(target.shape))
        offset += part.numel


def expert_tensors(experts: Experts, task: str, names: Sequence[str]) -> dict[str, Tensor]:
    """A task's expert's own values of some of the encoder's tensors, by their names in the module, flat."""
    rows = replace(
        experts.rows, experts=[experts.source(task)], weights=torch.ones(1, dtype=torch.float64), space="weight"
    )
    wanted, found = set(names), {}
    for unit in experts.units:
        if not any(experts.spots.get(part.name) in wanted for part in unit.parts):
            continue
        _, (row,) = rows.of(unit, tallied=False)
        offset = 0
        for part in unit.parts:
            if (name := experts.spots.get(part.name)) in wanted and name is not None:
                found[name] = row[offset : offset + part.numel].clone().view(part.shape)
            offset += part.numel
    return found


def features_of(place: Place, items: Items, places: Tensor | None = None, module: nn.Module | None = None) -> Tensor:
    """Features of items (some of them) under the encoder as it is, without gradients, on the device."""
    inputs = items.inputs if places is None else {name: whole[places] for name, whole in items.inputs.items()}
    return encode(
        module or place.module, inputs, batch_size=ENCODED, device=place.device, workers=place.workers,
        group=place.group,
    )  # fmt: skip


def head_outputs(head: nn.Module, features: Tensor, device: torch.device) -> Tensor:
    """A head's outputs on features, without gradients, in the host's memory."""
    with torch.no_grad():
        return torch.cat([head(part.to(device)).cpu() for part in torch.split(features, ENCODED)])


def spots_of(backbone: Backbone, units: Sequence[Unit]) -> dict[str, str]:
    """Tensor's name in the merge -> its name in the backbone's module, for those that it has."""
    names = [part.name for unit in units for part in unit.parts]
    found = backbone.naming.found(live_tensors(backbone.module), names)
    return {own: name for name, own in found.items()}


def files_digest(source: Source) -> str:
    """SHA-256 over the content of a source's files."""
    digest = hashlib.sha256()
    for path in source.files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tensors_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bytes_of(tensor.cpu().contiguous()))
    return digest.hexdigest()


def _none() -> Tensor:
    return torch.empty(0)
