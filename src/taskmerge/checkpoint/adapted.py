"""The folder of a merge that has more than one file: what `folder.json` says of it, and where its parts are.

Adaptation writes it, and so do methods that keep something of each task; `folder.json` comes last.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from taskmerge.checkpoint.ahead import Stamp, stamp
from taskmerge.checkpoint.identity import check_unchanged
from taskmerge.checkpoint.provenance import canonical
from taskmerge.checkpoint.small_files import write_small
from taskmerge.checkpoint.weights import PICKLE_ENDINGS, SAFE_ENDING
from taskmerge.documents import read_object
from taskmerge.errors import BadFile, nearest

MANIFEST, VERSION = "folder.json", 1
MODEL = "model.safetensors"
STATE = "state"
"""What an adaptation continues from: there while it runs, and after it was killed."""
Part = Literal["heads", "blocks", "adapters", "tasks", "coefficients", "masks", "recipe", "trace", "report"]
PLACES: Mapping[Part, str] = MappingProxyType(
    {
        "heads": "heads",  # of these four, a file TASK.safetensors for each task that has one
        "blocks": "blocks",
        "adapters": "adapters",
        "tasks": "tasks",
        "coefficients": "coefficients.safetensors",
        "masks": "masks.safetensors",
        "recipe": "recipe.yaml",
        "trace": "trace.jsonl",
        "report": "report.json",
    }
)
"""Where each part is, besides the shared encoder, which every folder has."""
OF_TASKS: tuple[Part, ...] = ("heads", "blocks", "adapters", "tasks")
"""Parts without which a task's outputs would be those of another model."""
KEYS: Mapping[str, type] = MappingProxyType({"method": str, "needs_task_index": bool, "parts": list, "protocol": str})
OPTIONAL = ("protocol",)
AGAIN = "run `taskmerge adapt` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder says of itself: the method that made it, whether a task's outputs need to be told which task it is,
    and which parts it has. `protocol` says what adaptation has seen (split, horizon)."""

    method: str
    needs_task_index: bool
    parts: tuple[Part, ...] = ()
    protocol: str | None = None


@dataclass(frozen=True, slots=True)
class AdaptedFolder:
    """A folder and its manifest; by `version` it is known whether that is still the one that was read (None: not)."""

    path: Path
    manifest: Manifest
    version: Stamp | None = field(default=None, compare=False)

    @property
    def model(self) -> Path:
        """The shared encoder."""
        return self.path / MODEL

    def place(self, part: Part) -> Path | None:
        """Where a part is; None if the folder does not have it."""
        return self.path / PLACES[part] if part in self.manifest.parts else None

    def file(self, part: Part, task: str) -> Path | None:
        """A task's file of one of the parts `OF_TASKS`; None if the task has none."""
        place = self.place(part)
        file = place / f"{task}.safetensors" if place else None
        return file if file and file.is_file() else None

    def files(self) -> dict[str, Path]:
        """All tasks' files of the parts `OF_TASKS`, by their places in the folder."""
        places = [place for part in OF_TASKS if (place := self.place(part)) is not None]
        return {
            f"{file.parent.name}/{file.name}": file
            for place in places
            for file in sorted(place.glob(f"*{SAFE_ENDING}"))
        }

    def check_unchanged(self) -> None:
        """Raises BadFile where another manifest has come since this one was read: files may be of two folders then."""
        if self.version is not None:
            check_unchanged({self.path / MANIFEST: self.version})


def is_adapted(path: Path) -> bool:
    """Whether a path is such a folder."""
    return os.path.isfile(path / MANIFEST)  # unlike Path.is_file, false for whatever cannot be looked at


def unfinished(path: Path) -> bool:
    """Whether a path is a folder in which an adaptation was begun and not ended: its trace or state, and no manifest.

    Models' folders may hold something of either name too: a trace alone says nothing beside a configuration, and a
    state alone nothing beside weights, which an adaptation writes long after the first line of its trace.
    """
    if is_adapted(path):
        return False
    trace, state = os.path.isfile(path / PLACES["trace"]), os.path.isdir(path / STATE)
    if trace:
        return state or not any(path.glob("*config.json"))
    return state and not any(file.name.endswith((SAFE_ENDING, *PICKLE_ENDINGS)) for file in path.glob("*"))


def check_finished(path: Path) -> None:
    """Raises BadFile for a folder of an adaptation that was begun and not ended, whose encoder is no result yet."""
    if unfinished(path):
        what = f"is the folder of an adaptation that has not ended: it has no {MANIFEST}"
        hint = f"`taskmerge adapt … --output {path} --resume` finishes it"
        raise BadFile(what, where=str(path), hint=hint)


def read_adapted(folder: Path, manifest: Manifest | None = None) -> AdaptedFolder:
    """The folder, if its manifest is one of this version and lists what is there. Raises BadFile otherwise.

    `manifest` is what it will say where that is not written yet.
    """
    file = folder / MANIFEST
    if manifest is not None:
        return AdaptedFolder(folder, manifest, stamp(file))
    version = stamp(file)  # before it is read: a change from here on is seen
    document = read_object(file, hint=AGAIN)
    _check_version(document, file)
    wrong = _malformed(document)
    if wrong:
        raise BadFile(wrong, where=str(file), hint=AGAIN)
    adapted = AdaptedFolder(
        folder,
        Manifest(
            method=document["method"],
            needs_task_index=document["needs_task_index"],
            parts=tuple(document["parts"]),
            protocol=document.get("protocol"),
        ),
        version,
    )
    _check_parts(adapted)
    return adapted


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `folder.json`: after everything else, so that a folder that has one is whole."""
    document: dict[str, object] = {
        "version": VERSION,
        "method": manifest.method,
        "needs_task_index": manifest.needs_task_index,
        "parts": sorted(manifest.parts),
    }
    if manifest.protocol is not None:
        document["protocol"] = manifest.protocol
    write_small(folder / MANIFEST, canonical(document) + "\n")


def _check_version(document: Mapping[str, Any], file: Path) -> None:
    version = document.get("version")
    if type(version) is int and version == VERSION:
        return
    words = f"is of version {json.dumps(version)}" if "version" in document else "has no `version`"
    hint = f"update taskmerge, or evaluate {file.with_name(MODEL)} alone (without its other parts)"
    raise BadFile(f"{words}, this taskmerge reads {VERSION}", where=str(file), hint=hint)


def _malformed(document: Mapping[str, Any]) -> str:
    """What about a manifest, which anybody may have written, is not as one is; "" if nothing."""
    for key, type_ in KEYS.items():
        if key not in document:
            if key not in OPTIONAL:
                return f"`{key}` is missing"
        elif not isinstance(document[key], type_):
            return f"`{key}` is malformed"
    strangers = sorted(document.keys() - KEYS.keys() - {"version"})
    if strangers:
        return f"`{strangers[0]}` is no key of a folder's manifest"
    for part in document["parts"]:
        if not isinstance(part, str) or part not in PLACES:
            close = nearest(str(part), PLACES)
            return f"`{part}` is no part of a folder" + (f" (`{close}` is)" if close else "")
    return "`parts` names one twice" if len(set(document["parts"])) < len(document["parts"]) else ""


def _check_parts(adapted: AdaptedFolder) -> None:
    """Every listed part is there, and no part of a task is there without being listed."""
    listed = adapted.manifest.parts
    for part, name in PLACES.items():
        path = adapted.path / name
        if part in listed and not path.exists():
            raise BadFile(f"lists `{name}`, which is not there", where=str(adapted.path / MANIFEST), hint=AGAIN)
        if part not in listed and part in OF_TASKS and path.is_dir() and any(path.iterdir()):
            what = f"does not list `{name}`, which is there"
            raise BadFile(what, where=str(adapted.path / MANIFEST), hint=f"remove {path}, or {AGAIN}")
