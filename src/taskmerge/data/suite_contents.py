"""`inspect` of a suite: what is there and what is missing, from listings, headers and metadata alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.data.data_headers import size_of
from taskmerge.documents import read_object
from taskmerge.errors import BadFile, TaskmergeError
from taskmerge.specs.heads import OUTPUT_WEIGHTS
from taskmerge.specs.suite import DENSE, BackboneSpec, HubPath, Location, Split, Suite, Task, Tokenizer
from taskmerge.specs.suite_file import load_suite

CONFIGS = {"open_clip": "open_clip_config.json", "transformers": "config.json", "torchvision": "config.json"}
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
State = Literal["found", "missing", "bad", "hub", "named", "none"]


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a suite names. `state`: found, missing, bad (there, but of no use), hub (fetched when needed),
    named (a registered name) or none (the suite has no such thing). `said` is what its header tells, or what is wrong.
    """

    what: str
    where: str
    state: State
    said: str = ""

    @property
    def problem(self) -> str | None:
        """One line about what is wrong with it, None if nothing is."""
        if self.state == "missing":
            return f"{self.what}: {self.where} is missing"
        return f"{self.what}: {self.said}" if self.state == "bad" else None


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """One split: its source and, where headers tell, how many items it has."""

    source: Found
    labelled: bool
    items: int | None = None


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task of a suite and what was found of it."""

    name: str
    kind: str
    metric: str
    classes: int
    templates: int
    expert: Found
    head: Found
    splits: Mapping[str, SplitEntry]


@dataclass(frozen=True, slots=True)
class SuiteInspection:
    """A suite and what was found of it. `missing` has one line for everything missing or bad; empty means complete."""

    path: str
    name: str
    library: str
    qkv: str
    model: Found
    tokenizer: Found
    base: Found
    tasks: tuple[TaskEntry, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people are told on stderr."""
        return self.missing

    def to_dict(self) -> dict[str, object]:
        """The inspection as plain values, for --json."""
        return {**asdict(self), "kind": "suite"}


def inspect_suite(path: str | Path, *, allow_pickle: bool = False) -> SuiteInspection:
    """What a suite names, and whether it is there. Reads headers and metadata, no weights and no items.

    Raises UsageError for a suite that is wrong in itself; whatever it names and is missing is part of the result.
    """
    suite = load_suite(Path(path))
    spec = suite.backbone
    model, tokenizer = _model(spec), _tokenizer(spec.tokenizer)
    base = _weights("the base", suite.base, allow_pickle)
    tasks = tuple(_task(suite, one, allow_pickle) for one in suite.tasks)
    found = things(model, tokenizer, base, tasks)
    missing = tuple(one.problem for one in found if one.problem)
    return SuiteInspection(
        str(path), suite.name, spec.library, suite.qkv, model, tokenizer, base, tasks, missing, suite.notes
    )


def things(model: Found, tokenizer: Found, base: Found, tasks: Sequence[TaskEntry]) -> list[Found]:
    """Everything that a suite names."""
    found = [model, tokenizer, base]
    for task in tasks:
        found += [task.expert, task.head, *(split.source for split in task.splits.values())]
    return found


def _task(suite: Suite, task: Task, allow_pickle: bool) -> TaskEntry:
    splits = {name: _split(task, name, split) for name, split in task.splits.items()}
    return TaskEntry(
        task.name, task.kind, task.metric, len(task.classes), len(task.templates),
        _weights(f"the expert of `{task.name}`", task.expert, allow_pickle), _head(suite, task, allow_pickle), splits,
    )  # fmt: skip


def _place(what: str, place: Location | None) -> Found:
    """Whether a file or folder is there."""
    if place is None:
        return Found(what, "", "none")
    if isinstance(place, HubPath):
        return Found(what, str(place), "hub")
    return Found(what, str(place), "found" if place.exists() else "missing")


def _model(spec: BackboneSpec) -> Found:
    """A registered name, or a configuration file (in a folder: the library's own name for it) that is a JSON object."""
    if isinstance(spec.model, str):
        return Found("the model", spec.model, "named")
    found = _place("the model", spec.model)
    if found.state != "found" or not isinstance(spec.model, Path):
        return found
    file = spec.model / CONFIGS[spec.library] if spec.model.is_dir() else spec.model
    try:
        read_object(file, constants=True)
    except BadFile as error:
        return replace(found, state="bad", said=f"{error.where}: {error.what}")
    return found


def _tokenizer(tokenizer: Tokenizer | None) -> Found:
    """A BPE file that is not empty, or a folder with any of the files that tokenizers are saved in."""
    place = None if tokenizer is None else tokenizer.bpe or tokenizer.folder
    found = _place("the tokenizer", place)
    if found.state != "found" or not isinstance(place, Path):
        return found
    if place.is_file() and not place.stat().st_size:
        return replace(found, state="bad", said=f"{place} is empty (0 bytes)")
    if place.is_dir() and not any((place / name).is_file() for name in VOCABULARIES):
        return replace(found, state="bad", said=f"{place} has none of {', '.join(VOCABULARIES)}")
    return found


def _opened(what: str, place: Location | None, allow_pickle: bool) -> tuple[Found, Checkpoint | None]:
    """A checkpoint by its header; no tensor can be read of it any more."""
    found = _place(what, place)
    if found.state != "found" or not isinstance(place, Path):
        return found, None
    try:
        with open_plain(place, allow_pickle=allow_pickle) as checkpoint:
            return found, checkpoint  # closed, but its header stays known
    except TaskmergeError as error:
        return Found(what, str(place), "bad", error.message.replace("\n", "; ")), None


def _weights(what: str, place: Location | None, allow_pickle: bool) -> Found:
    found, checkpoint = _opened(what, place, allow_pickle)
    if checkpoint is None:
        return found
    count = sum(one.numel for one in checkpoint.specs.values())
    return Found(what, found.where, "found", f"{len(checkpoint.specs)} tensors, {count:,} parameters")


def _head(suite: Suite, task: Task, allow_pickle: bool) -> Found:
    """A head's file has a weight with a row a class; dense heads are only opened."""
    what = f"the head of `{task.name}`"
    if task.head == "zero_shot":
        return Found(what, "zero_shot", "found", f"{len(task.classes)} classes, {len(task.templates)} templates")
    if task.head == "expert":
        return Found(what, "expert", "found", "the expert's own")
    found, checkpoint = _opened(what, task.head, allow_pickle)
    if checkpoint is None:
        return found
    if task.kind in DENSE:
        return Found(what, found.where, "found", f"{len(checkpoint.specs)} tensors")
    name = next((name for name in OUTPUT_WEIGHTS if name in checkpoint.specs), None)
    if name is None:
        names = ", ".join(list(checkpoint.specs)[:5])
        return Found(what, found.where, "bad", f"{found.where} has no tensor `weight` (it has {names})")
    shape = checkpoint.specs[name].shape
    if task.kind == "classification" and task.classes and shape[:1] != (len(task.classes),):
        said = f"{found.where}: `{name}` is {list(shape)}, and the suite names {len(task.classes)} classes"
        return Found(what, found.where, "bad", said)
    return Found(what, found.where, "found", " x ".join(map(str, shape)))


def _split(task: Task, name: str, split: Split) -> SplitEntry:
    """The source of a split, with the number of items where a header has it."""
    what = f"the split `{name}` of `{task.name}`"
    labelled = split.y is not None
    if split.form == "torchvision":
        found = _place(what, split.location)
        return SplitEntry(Found(what, f"torchvision {split.dataset} in {found.where}", found.state), labelled)
    found = _place(what, split.location)
    if found.state != "found":
        return SplitEntry(found, labelled)
    try:
        items, said = size_of(split, name)
    except (TaskmergeError, OSError) as error:
        text = error.message.replace("\n", "; ") if isinstance(error, TaskmergeError) else f"{found.where}: {error}"
        return SplitEntry(Found(what, found.where, "bad", text), labelled)
    return SplitEntry(Found(what, found.where, "found", said), labelled, items)
