"""Which file a path leads to, and which version of it: what is read must stay what it was, and not be written over."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from taskmerge.checkpoint.ahead import Stamp, stamp
from taskmerge.errors import BadFile

FileId = tuple[int, int]
"""Device and inode: the file itself, by whatever path."""


def file_id(path: Path) -> FileId | None:
    """The file that a path leads to; None where nothing is there, or nobody may look."""
    version = stamp(path)
    return version[:2] if version else None


def file_ids(paths: Iterable[Path]) -> dict[FileId, Path]:
    """Those of `paths` that exist, by the file that they lead to."""
    return {version: path for path in paths if (version := file_id(path)) is not None}


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp | None]:
    """The version in which each file is now; to be taken before the file is read."""
    return {path: stamp(path) for path in paths}


def check_unchanged(stamps: Mapping[Path, Stamp | None]) -> None:
    """Raises `BadFile` for a file that is no longer what `stamps_of` saw: rewritten, replaced, gone, or new.

    Status changes count too (chmod, a further hard link): the time of the last one is what cannot be set back.
    """
    for path, before in stamps.items():
        if stamp(path) != before:
            raise changed(path)


def still_read(number: int, before: Stamp | None) -> bool:
    """Whether an open file holds what it held when it was stamped.

    A file that was replaced under its name is read on as it was: taking its last name away is a change of status,
    which alone is no change of content.
    """
    now = stamp(number)
    if now is None or before is None or now == before:
        return now == before
    return os.fstat(number).st_nlink == 0 and now[:4] == before[:4]


def changed(path: Path) -> BadFile:
    """The error for a file that was rewritten under the reader's hands."""
    return BadFile("changed while it was being read", where=str(path), hint="wait until it is written, then run again")
