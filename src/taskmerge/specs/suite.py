"""What a suite says: backbone, base, tasks with experts, heads, metrics and data. Frozen values; nothing is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from taskmerge.specs.class_names import ClassesBy

Library = Literal["open_clip", "transformers", "torchvision"]
TaskKind = Literal["classification", "regression", "segmentation", "depth", "normals"]
DENSE: tuple[TaskKind, ...] = ("segmentation", "depth", "normals")
"""Kinds of tasks whose outputs are maps."""
Pooling = Literal["cls", "mean", "last"]
Form = Literal["npz", "jsonl", "delimited", "parquet", "images", "datasets", "torchvision", "hub"]


@dataclass(frozen=True, slots=True)
class HubPath:
    """A file (or, without `file`, the whole repository) on a model or data hub."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"hub {self.repository}{f'/{self.file}' if self.file else ''}"


Location = Path | HubPath
"""A path on this machine (already joined with the suite's folder), or a place on the hub."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a picture becomes an input: size of the square, and mean and deviation of each channel of [0, 1]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Where a tokenizer is: a BPE file for open_clip (`bpe`), a folder for transformers (`folder`)."""

    bpe: Location | None = None
    folder: Location | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """The architecture that every checkpoint of the suite fills.

    `model` is a registered name (str), a configuration file, or a folder. `place` is where it stands, for messages.
    """

    library: Library
    model: str | Location
    tokenizer: Tokenizer | None = None
    preprocess: Preprocess | None = None
    pooling: Pooling | None = None
    max_length: int | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """The items of one split. `x` are arrays or columns (two for pairs of texts), `y` the labels', None if unlabelled.

    `name` and `configuration` choose inside a `datasets` folder, a hub data set or a torchvision data set (whose name
    is `dataset`). `classes_by` says how its classes are the task's: by `name` (maybe some of them), by `number` where
    names do not match, or, where nothing is said, by names that match one for one. `place` is where it stands in the
    suite.
    """

    form: Form
    location: Location | None
    x: tuple[str, ...] = ()
    y: str | None = None
    dataset: str | None = None
    configuration: str | None = None
    name: str | None = None
    classes_by: ClassesBy | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One task. `head` is a file, `zero_shot` (from class names and templates), or `expert`: the expert's own."""

    name: str
    expert: Location | None
    head: Location | Literal["zero_shot", "expert"]
    kind: TaskKind
    metric: str
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """A whole suite; `tasks` in the order of the file. `where` is its path, `folder` what its paths start from."""

    name: str
    where: str
    folder: Path
    backbone: BackboneSpec
    base: Location | None
    tasks: tuple[Task, ...]
    qkv: Literal["as-is", "split", "fused"] = "as-is"
    notes: tuple[str, ...] = ()
