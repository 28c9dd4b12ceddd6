"""What every form of a split offers: a length, items in ascending order, labels apart from them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from taskmerge.data.sources.limits import files_below
from taskmerge.errors import BadFile, UsageError, nearest
from taskmerge.specs.class_names import ClassesBy
from taskmerge.specs.suite import Split

Indices = Sequence[int]
"""Places in the source, ascending."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An item that cannot be decoded, and why."""

    reason: str


@dataclass(frozen=True)
class ItemSource:
    """One split, found but not yet decoded.

    `read` yields the stored form of the items asked for, `decode` turns one into a PIL picture (RGB), a uint8 array
    [H, W, 3], a text or a pair of texts, or `Broken`; it may run in several threads. `labels` gives the labels as
    stored, and is None where they were not asked for: nothing else looks at them. `class_names` are the names that
    the source itself gives its classes by number, `classes_by` is how the suite says that these are the task's.
    `place` names one item in messages. `identity` tells when what is on disk has changed, and (from `open_source`)
    what was picked of it. `pictures` tells pictures from texts.
    """

    where: str
    identity: tuple[str, ...]
    length: int
    read: Callable[[Indices], Iterator[Any]]
    decode: Callable[[Any], Any]
    place: Callable[[int], str]
    labels: Callable[[Indices], Sequence[Any] | NDArray[Any]] | None = None
    class_names: tuple[str, ...] | None = None
    classes_by: ClassesBy | None = None
    pictures: bool = False


def state_of(path: Path) -> tuple[str, ...]:
    """What identifies a file, or every file of a folder, without reading them: paths, sizes and times of change."""
    if not os.path.isdir(path):
        return (_state(path),)
    return tuple(_state(file) for file in files_below(path))


def existing(path: Path, kind: str) -> Path:
    """The path, if something is there."""
    if not os.path.exists(path):
        raise BadFile(f"no such {kind}", where=str(path), hint="check the path in the suite")
    return path


def no_such_column(kind: str, name: str, names: Sequence[str], split: Split, where: str) -> UsageError:
    """The complaint about an array or column that the suite names and the data lack."""
    close = nearest(name, names)
    has = f"it has {', '.join(f'`{each}`' for each in names)}" if names else "it has none"
    hint = f"did you mean `{close}`? {has}" if close else has
    return UsageError(f"no {kind} `{name}`", where=said_at(split, where), hint=hint)


def said_at(split: Split, where: str) -> str:
    """Where the suite says what the data at `where` do not hold."""
    return f"{split.place}: {where}" if split.place else where


def _state(path: Path) -> str:
    status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nothing
    return f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
