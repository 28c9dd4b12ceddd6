"""What can be evaluated: files, folders, results of `merge` and `adapt`, and the words `base` and `experts`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from taskmerge.checkpoint.adapted import AdaptedFolder, Manifest, check_finished, is_adapted, read_adapted
from taskmerge.checkpoint.checkpoint import Checkpoint, checked_plain, open_plain
from taskmerge.checkpoint.digest import content_digest, digest_of, digest_of_files
from taskmerge.checkpoint.held import Held, Place, open_place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import Mismatch, UsageError
from taskmerge.evaluation.selection import EXPERT
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.lora_names import is_adapter
from taskmerge.models.contract import Backbone
from taskmerge.models.fill import check_fits
from taskmerge.specs.suite import Location, Suite, Task

Resolve = Callable[[Location], Path]
EncoderKind = Literal["base", "expert", "checkpoint", "merge", "adapted"]
BASE, EXPERTS = "base", "experts"
NO_MANIFESTS: Mapping[Path, Manifest] = MappingProxyType({})
DIFFERENCES = {"vector": "task vectors", "factors": "factored task vectors"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """One set of encoder weights. `row` is its name in the report, `group` the argument it belongs to.

    `tasks` are the only ones it is scored on (None: all); `digest` the content digest of all its tensors, with those
    of tasks' own parts; `recipe` what
    taskmerge made it by. An adapted one comes from a `folder`, of whose parts `blocks` (by task) are opened with it.
    """

    row: str
    group: str
    kind: EncoderKind
    checkpoint: Checkpoint
    digest: str
    tasks: tuple[str, ...] | None = None
    own_task: str | None = None
    recipe: Mapping[str, Any] | None = None
    folder: AdaptedFolder | None = None
    blocks: Mapping[str, Checkpoint] = field(default_factory=dict)

    @property
    def protocol(self) -> str | None:
        """What an adapted one has seen."""
        return self.folder.manifest.protocol if self.folder else None

    def scored_on(self, task: Task) -> bool:
        """Whether it is scored on a task."""
        return self.tasks is None or task.name in self.tasks

    def check_unchanged(self) -> None:
        """Raises BadFile where a file of it was rewritten since it was opened."""
        for checkpoint in (self.checkpoint, *self.blocks.values()):
            checkpoint.check_unchanged()
        if self.folder is not None:
            self.folder.check_unchanged()

    def to_dict(self) -> dict[str, Any]:
        """Identity without paths, for the report."""
        index = self.folder.manifest.needs_task_index if self.folder else None
        more = {"task": self.own_task, "recipe": self.recipe, "protocol": self.protocol, "needs_task_index": index}
        given = {key: value for key, value in more.items() if value is not None}
        return {"name": self.row, "kind": self.kind, "digest": self.digest, **given}


def encoders(
    arguments: Arguments,
    suite: Suite,
    *,
    resolve: Resolve,
    stack: ExitStack,
    cross: bool = False,
    with_experts: bool = False,
    allow_pickle: bool = False,
    manifests: Mapping[Path, Manifest] = NO_MANIFESTS,
) -> tuple[Encoder, ...]:
    """Opens what was asked for (headers only), in the order of the arguments.

    `cross` and `with_experts` add the experts if they are not among the arguments; `cross` scores them on every task.
    Raises UsageError for names given twice and for experts or a base that the suite does not have, BadFile for what
    cannot be read, Mismatch for what is no model.
    """
    opener = _Opener(suite, resolve, stack, allow_pickle, manifests)
    items = named_arguments(arguments)
    if (cross or with_experts) and EXPERTS not in [name for name, path in items if path is None]:
        items.append((EXPERTS, None))
    if not items:
        raise UsageError(
            "there is nothing to evaluate",
            hint="give checkpoints, or the words `experts` and `base`: eval experts base",
        )
    _check_names(items)
    opened: list[Encoder] = []
    for name, path in items:
        if path is not None:
            opened.append(opener.given(name, path))
        elif name == BASE:
            opened.append(opener.base())
        else:
            opened += [opener.expert(task, everywhere=cross) for task in suite.tasks]
    return tuple(opened)


def check_encoders(encoders: Iterable[Encoder], backbone: Backbone, base: Checkpoint | None) -> None:
    """Raises Mismatch, from headers alone, for every encoder that does not fill the backbone, and for every block that
    is no part of its encoder. `base` completes what lacks embeddings."""
    known = list(encoders)
    blocks = [(encoder.checkpoint, block) for encoder in known for block in encoder.blocks.values()]
    check_fits(backbone, [encoder.checkpoint for encoder in known], base, blocks)


def argument_names(arguments: Arguments) -> list[str]:
    """The names under which the arguments appear in the report; `experts` is one of them."""
    return [name for name, _ in named_arguments(arguments)]


def named_arguments(arguments: Arguments) -> list[tuple[str, Place | None]]:
    """(name, place) of every argument; none for the words `base` and `experts`, which win over files called so."""
    if isinstance(arguments, str | Path):
        arguments = [arguments]
    if isinstance(arguments, Mapping):
        return list(named(arguments))
    names: list[tuple[str, Place | None]] = []
    for argument in arguments:
        names += [(str(argument), None)] if str(argument) in (BASE, EXPERTS) else named([argument])
    return names


def _check_names(items: Sequence[tuple[str, Place | None]]) -> None:
    """Every row of the report has its own name; those of the experts are theirs."""
    seen: dict[str, Place | None] = {}
    for name, path in items:
        if path is not None and (name == EXPERTS or name.startswith(EXPERT)):
            hint = f"name it otherwise: `other={path}`"
            raise UsageError(f"a checkpoint cannot be called `{name}`", where=str(path), hint=hint)
        if name in seen:
            raise _twice(name, seen[name], path)
        seen[name] = path


def _twice(name: str, first: Place | None, second: Place | None) -> UsageError:
    """The complaint about two arguments of one name."""
    path = second or first
    if path is None:
        return UsageError(f"`{name}` is given twice", hint="leave one out")
    problem = (
        "is given twice" if first == second else f"is the name of two checkpoints: {first or name} and {second or name}"
    )
    return UsageError(f"`{name}` {problem}", where=str(path), hint=f"name one of them, such as `other={path}`")


@dataclass(frozen=True)
class _Opener:
    """Opens checkpoints of one suite; they are closed with `stack`."""

    suite: Suite
    resolve: Resolve
    stack: ExitStack
    allow_pickle: bool
    manifests: Mapping[Path, Manifest]

    def base(self) -> Encoder:
        checkpoint = self._open(self.resolve(base_of(self.suite)))
        return Encoder(BASE, BASE, "base", checkpoint, digest_of(checkpoint))

    def expert(self, task: Task, *, everywhere: bool) -> Encoder:
        if task.expert is None:
            hint = f"give it a line `expert: FILE`, or leave it out with --tasks, or don't ask for `{EXPERTS}`"
            raise UsageError(f"task `{task.name}` has no expert", where=task.place or self.suite.where, hint=hint)
        checkpoint = self._open(self.resolve(task.expert))
        tasks = None if everywhere else (task.name,)
        name = EXPERT + task.name
        return Encoder(name, EXPERTS, "expert", checkpoint, digest_of(checkpoint), tasks, own_task=task.name)

    def given(self, name: str, path: Place) -> Encoder:
        """A file, a folder or a state dict: a checkpoint, a result of `merge`, or a folder that `adapt` wrote."""
        if isinstance(path, Held):
            checkpoint = self._open(path)
            return Encoder(name, name, "checkpoint", checkpoint, digest_of(checkpoint))
        if is_adapted(path) or path in self.manifests:
            return self._adapted(name, path)
        check_finished(path)
        checkpoint = self._open(path)
        record = provenance_of(checkpoint) or {}
        kind = record.get("kind", "checkpoint")
        if kind in DIFFERENCES:
            hint = "`taskmerge merge` (one input is enough) or `taskmerge vectors --apply` makes a model of them"
            raise Mismatch(f"holds {DIFFERENCES[kind]}, not a model", where=str(path), hint=hint)
        recipe = _recipe(record)
        made: EncoderKind = "merge" if recipe else "checkpoint"
        return Encoder(name, name, made, checkpoint, digest_of(checkpoint), recipe=recipe)

    def _adapted(self, name: str, path: Path) -> Encoder:
        """A folder of `adapt`: its encoder, and its blocks. A part that cannot be applied is refused, not ignored."""
        folder = read_adapted(path, self.manifests.get(path))
        if "tasks" in folder.manifest.parts:
            raise Mismatch(
                "has per-task parts (`tasks/`), which this version cannot apply", where=str(path),
                hint=f"evaluate {folder.model} alone to know what its shared encoder is worth",
            )  # fmt: skip
        checkpoint = self._open(folder.model)
        files = {task.name: folder.file("blocks", task.name) for task in self.suite.tasks}
        blocks = {task: self._open(file) for task, file in files.items() if file is not None}
        recipe = _recipe(provenance_of(checkpoint) or {})
        digest = self._digest(folder, checkpoint)
        return Encoder(name, name, "adapted", checkpoint, digest, recipe=recipe, folder=folder, blocks=blocks)

    def _digest(self, folder: AdaptedFolder, model: Checkpoint) -> str:
        """Of everything in a folder that decides outputs: the encoder's own, or, with parts of tasks, that of all."""
        whole = digest_of(model)
        files = folder.files()
        if not files:
            return whole
        with ExitStack() as stack:
            parts = {place: stack.enter_context(open_plain(file)) for place, file in files.items()}
            return content_digest([whole, digest_of_files(parts)])

    def _open(self, place: Place) -> Checkpoint:
        if is_adapter(place):
            hint = "merge it into its base first: `taskmerge merge ADAPTER --base FILE --method average`"
            raise Mismatch("is an adapter, not a model", where=str(place), hint=hint)
        return self.stack.enter_context(checked_plain(open_place(place, allow_pickle=self.allow_pickle)))


def base_of(suite: Suite) -> Location:
    """Where the suite's base is."""
    if suite.base is None:
        raise UsageError("the suite has no base", where=suite.where, hint="add a line `base: FILE`")
    return suite.base


def _recipe(record: Mapping[str, object]) -> Mapping[str, Any] | None:
    """What the file was made by, if taskmerge merged it."""
    recipe = record.get("recipe")
    return recipe if isinstance(recipe, dict) else None
