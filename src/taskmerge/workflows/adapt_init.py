"""What `--init FOLDER` gives a run to start from of all that an earlier one wrote; what it cannot use is refused.

A file of coefficients gives these alone, a checkpoint its encoder alone: `--init FOLDER/coefficients.safetensors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from taskmerge.adaptation.opening import Opened, OpenedTask, Place
from taskmerge.checkpoint.adapted import PLACES, AdaptedFolder, Part, check_finished, is_adapted, read_adapted
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.hub import resolve
from taskmerge.checkpoint.learned import read_coefficients, read_learned
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import BadFile, Mismatch, UsageError, listed, located
from taskmerge.merging.learned import check_fits
from taskmerge.merging.plan import Plan
from taskmerge.methods.adaptive import Adapter, Block, Coefficients, Heads, Learnable, Masks, Parts, Relaxed
from taskmerge.methods.composed import Learned
from taskmerge.models.adapters import read_adapter
from taskmerge.models.heads import load_head
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.merge import MergeSpec

WHERE = "--init"
OWN: Mapping[Part, type[Learnable] | None] = {"blocks": Block, "adapters": Adapter, "tasks": None}
"""What learns such parts of tasks, without which their outputs would be those of another model."""
MASKED: Part = "masks"
TAKEN: tuple[Part, ...] = ("heads", "blocks", "adapters")
COMPOSED = {"composed_base": "the base", "composed_mean": "the experts' mean"}


@dataclass(frozen=True)
class Start:
    """What a run starts from besides an encoder: coefficients and masks, and every task's own parts that are in
    `folder`. `learned_from` is the method of the merge that the coefficients were learnt of."""

    learned: Learned | None = None
    folder: AdaptedFolder | None = None
    taken: tuple[Part, ...] = ()
    learned_from: str | None = None

    def file(self, part: Part, task: str) -> Path | None:
        """A task's file of a part that is taken."""
        return self.folder.file(part, task) if self.folder is not None and part in self.taken else None

    def words(self) -> str | None:
        """A note on what it is besides the encoder; None if nothing."""
        taken: list[Part] = list(self.taken)
        if self.learned is not None:
            taken = ["coefficients", *([MASKED] if self.learned.masks else []), *taken]
        return f"{', '.join(taken)} start from those of {self.folder.path}" if taken and self.folder else None


NOWHERE = Start()


def start_of(path: Path, parts: Parts, spec: AdaptSpec) -> Start:
    """What a path gives: a file of coefficients, a checkpoint, or a folder that `adapt` wrote.

    Raises UsageError for a folder of which this run would lose something, and says what; BadFile for what is damaged
    or not there.
    """
    composed = parts.origin != "init"
    if not path.exists():
        raise BadFile("there is no such file", where=str(path), hint="--init names a file of coefficients, or a folder")
    if composed and spec.options.get("coefficient") is not None:
        what, hint = "says where coefficients start, and so does --init", "leave one of them out"
        raise UsageError(what, where="--coefficient", hint=hint)
    if path.is_dir():
        check_finished(path)
    if not is_adapted(path):
        if not composed:
            return NOWHERE
        return Start(read_learned(path) if path.is_dir() else read_coefficients(path))
    folder = read_adapted(path)
    _check_own(folder, parts)
    _check_shaping(folder, parts)
    taken = tuple(part for part in TAKEN if _takes(part, folder, parts, spec))
    if not composed:
        return Start(folder=folder, taken=taken)
    with open_checkpoint(folder.model) as model:
        recipe = (provenance_of(model) or {}).get("recipe")
    method = str(recipe.get("method")) if isinstance(recipe, dict) else None
    return Start(read_learned(path), folder, taken, method)


def _takes(part: Part, folder: AdaptedFolder, parts: Parts, spec: AdaptSpec) -> bool:
    """Whether a part is taken: one that the folder has, unless something else is said of where it starts."""
    heads = parts.of(Heads)
    if part == "heads" and isinstance(heads, Heads) and heads.start != "given":
        return False
    if part == "blocks" and spec.block_start is not None:
        return False
    return part in folder.manifest.parts


def _check_own(folder: AdaptedFolder, parts: Parts) -> None:
    """Refuses to lose what tasks have of their own between the encoder and the head."""
    for part, kind in OWN.items():
        if part in folder.manifest.parts and (kind is None or parts.of(kind) is None):
            what = f"its tasks have {part} of their own (`{PLACES[part]}/`), which this run would lose"
            hint = f"choose a method that learns {part}" if kind else "choose a folder that `adapt` wrote"
            raise UsageError(what, where=f"{WHERE} {folder.path}", hint=f"{hint}, or {_alone(folder, parts)}")


def _check_shaping(folder: AdaptedFolder, parts: Parts) -> None:
    """Refuses coefficients that are not there, and masks that this run does not have."""
    if parts.origin == "init":
        return
    where = f"{WHERE} {folder.path}"
    if "coefficients" not in folder.manifest.parts:
        what = f"`{folder.manifest.method}` leaves the encoder as it is: no coefficients are there to start from"
        raise UsageError(what, where=where, hint="name a folder of a method that learns coefficients, or leave it out")
    if "masks" not in folder.manifest.parts or isinstance(parts.shaped_by(Masks), Masks):
        return
    alone = _alone(folder, parts)
    if parts.of(Relaxed) is not None:
        what = "a mask of entries is written as one draw of bits, which does not say what it was drawn from"
        raise UsageError(what, where=where, hint=alone)
    what = "its masks would be lost, and its coefficients were learnt with them: this run has no masks"
    raise UsageError(what, where=where, hint=f"choose a method with masks (--method adarank), or {alone}")


def _alone(folder: AdaptedFolder, parts: Parts) -> str:
    if parts.origin == "init":
        return f"name {folder.model}: the shared encoder alone"
    return f"name {folder.path / PLACES['coefficients']}: coefficients alone"


# --- coefficients and masks ------------------------------------------------------------------------------------


def check_learned(start: Start, plan: Plan, spec: MergeSpec, parts: Parts) -> None:
    """Raises Mismatch where coefficients and masks are of other tasks or tensors than the plan's, UsageError where they
    are of vectors from another origin, or of each tensor where this run learns one a task."""
    learned = start.learned
    if learned is None:
        return
    own, theirs = spec.chain()[-1].name, start.learned_from
    if theirs in COMPOSED and theirs != own:
        what = f"they were learnt of vectors from {COMPOSED[theirs]}, this run's start from {COMPOSED[own]}"
        hint = f"--origin {'base' if theirs == 'composed_base' else 'mean'} is theirs"
        raise UsageError(what, where=WHERE, hint=hint)
    with located(WHERE):
        _check_tensors(learned, plan)
        check_fits(learned, plan.tasks, plan.jobs)
    shape = parts.of(Coefficients)
    rows = torch.stack(list(learned.coefficients.values()))
    if isinstance(shape, Coefficients) and shape.layout == "task" and not bool((rows == rows[0]).all()):
        hint = "leave --layout task out"
        raise UsageError("they are one a task and tensor, this run learns one a task", where=WHERE, hint=hint)


def _check_tensors(learned: Learned, plan: Plan) -> None:
    """Every merged tensor has its coefficients, and, if there are masks, every factored one its own."""
    if learned.tasks != plan.tasks:
        what = f"coefficients of {listed(learned.tasks, plain=True)} are no start for {listed(plan.tasks, plain=True)}"
        raise Mismatch(what, hint="name those of the same tasks")
    merged = {job.name for job in plan.jobs if job.action == "merge"}
    factored = {job.name for job in plan.jobs if job.action == "merge" and job.factored}
    for kind, names, wanted in (
        ("coefficients", learned.coefficients.keys(), merged), ("masks", learned.masks.keys(), factored)
    ):  # fmt: skip
        if kind == "masks" and not names:
            continue
        if strange := sorted(names ^ wanted):
            what = f"the {kind} there are of other tensors than those of this run: {listed(strange, 3)}"
            raise Mismatch(what, hint="merge as they were learnt: the same experts, --qkv, --include and --exclude")


# --- tasks' own parts ------------------------------------------------------------------------------------------


def begun(opened: Opened, start: Start, place: Place) -> Opened:
    """The tasks with the heads and adapters of their own that they start with."""
    return replace(opened, tasks=tuple(_begun(task, start, place) for task in opened.tasks))


def _begun(opened: OpenedTask, start: Start, place: Place) -> OpenedTask:
    head: nn.Module | None = None
    if file := start.file("heads", opened.task.name):
        loaded = load_head(replace(opened.task, head=file), place.backbone, resolve=resolve)
        head = loaded.to(place.device, place.dtype) if isinstance(loaded, nn.Module) else None
    adapter: nn.Module | None = None
    if file := start.file("adapters", opened.task.name):
        adapter = read_adapter(file, place.backbone.width).to(place.device, place.dtype)
    return replace(opened, own_head=head, own_adapter=adapter)


def own_blocks(
    start: Start, tasks: Sequence[str], spots: Mapping[str, str], wanted: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Task -> the tensors of its own block by their names in the encoder, of those that have one.

    Raises UsageError for blocks that are other tensors than the `wanted` ones.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for task in tasks:
        file = start.file("blocks", task)
        if file is None:
            continue
        with open_checkpoint(file) as block:
            names = {spots.get(name, name): name for name in block.specs}
            if strange := sorted(names.keys() ^ set(wanted)):
                what = f"the block there has other tensors than this run's: {listed(strange, 3)}"
                raise UsageError(what, where=str(file), hint="name the --layer that it was learnt for")
            found[task] = {name: block.tensor(own) for name, own in names.items()}
    return found
