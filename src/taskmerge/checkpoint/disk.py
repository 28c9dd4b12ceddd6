"""What the system says of a disk: how much room there is, and in which words it refuses."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskmerge.errors import BadOutput

FULL = (errno.ENOSPC, errno.EDQUOT)
FEW = (errno.EMFILE, errno.ENFILE)


@contextmanager
def explained(path: Path, needed: int = 0) -> Iterator[None]:
    """The system's errors as BadOutput: the disk is full, or whatever keeps the output from being written."""
    try:
        yield
    except OSError as error:
        hint = "choose another output with -o"
        what = f"cannot be written: {error.strerror or error}"
        if error.errno in FULL and needed:
            what = f"disk full: the output needs {needed:,} bytes, {free_bytes(path)} are free"
        if error.errno in FULL:
            hint = "free space, or choose another disk with -o"
        elif error.errno in FEW:
            hint = "raise the limit (`ulimit -n 4096`), or write fewer files at once"
        raise BadOutput(what, where=str(path), hint=hint) from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone in the end. Raises BadOutput where the machine has no place for temporary files."""
    hint = "set TMPDIR to a folder that can be written"
    try:
        made = tempfile.TemporaryDirectory(prefix="taskmerge-")
    except OSError as error:
        what = f"there is no place for temporary files: {error.strerror}"
        raise BadOutput(what, where="TMPDIR", hint=hint) from error
    with made as folder:
        yield Path(folder)


def free_bytes(path: Path) -> str:
    """Free bytes on the disk that holds (or will hold) `path`, for people."""
    with suppress(OSError):
        room = room_at(path)
        return "an unknown number" if room is None else f"{room:,}"
    return "an unknown number"


def room_at(path: Path) -> int | None:
    """Free bytes on the disk that holds (or will hold) `path`; None where it does not tell (some network disks)."""
    status = os.statvfs(existing(path.absolute()))
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def existing(path: Path) -> Path:
    """The folder, or what else, that is nearest above a path (or the path itself)."""
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
