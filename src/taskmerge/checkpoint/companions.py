"""What goes beside the weights of an output: size and digest of every file for its record, and whether they hold."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.cards import CARD, is_sealed
from taskmerge.checkpoint.sidecars import TEMPLATES, belongs
from taskmerge.checkpoint.weights import escapes
from taskmerge.documents import open_regular
from taskmerge.errors import BadFile

OTHER = "holds other bytes than were written"
LARGEST_CARD = 1 << 24
"""Bytes: a card lists the experts and the recipe."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file of an output, by its place in the output's folder, that is not what was written, and in what."""

    file: str
    what: str


def described(files: Mapping[str, bytes | Path]) -> dict[str, object]:
    """The files as a record has them: bytes and digest, by name. Reads those that are given as paths.

    The card, which names inputs as they are called where they were merged, holds its digest itself.
    """
    return {name: {} if name == CARD else _described(content) for name, content in sorted(files.items())}


def _described(content: bytes | Path) -> dict[str, object]:
    if isinstance(content, bytes):
        return {"bytes": len(content), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "digest": f"sha256:{digest}"}


def companion_changes(home: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """The files in a folder that are not what a record says of them. What has another size is not read."""
    found = ((name, _change(home / name, entry)) for name, entry in sorted(recorded.items()) if not escapes(name))
    return [Change(name, what) for name, what in found if what]


def _change(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not os.path.lexists(path):
        return "is not there"
    try:
        with open(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if "digest" not in entry:
                return None if size <= LARGEST_CARD and is_sealed(file.read()) else OTHER
            if size != entry.get("bytes", size):
                return f"has {size:,} bytes, {entry['bytes']:,} were written"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except BadFile as error:
        return error.what
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if f"sha256:{digest}" == entry["digest"] else OTHER


def strangers(home: Path, written: Collection[str]) -> tuple[list[Change], list[str]]:
    """What lies in an output's folder and was not written there, by names alone: what loaders would take for the
    model's, and everything else. Hidden files are neither."""
    tops = {name.split("/")[0] for name in written}
    names = [name for name in _visible(home) if name not in tops and name != TEMPLATES]
    names += [f"{TEMPLATES}/{name}" for name in _visible(home / TEMPLATES)]
    new = [name for name in names if name not in written]
    added = [Change(name, "was not written by the merge") for name in new if belongs(name)]
    return added, [name for name in new if not belongs(name)]


def _visible(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; none where it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
