"""What data may be on their way into memory: how large a picture is, how deep a folder, what libraries may raise."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskmerge.errors import BadFile, TaskmergeError

LARGEST_PICTURE = 89_478_485
"""Pixels of one picture: Pillow's own limit, at which it warns."""
MOST_FOLDERS = 1_000_000
AGAIN = "download or copy it again"


@contextmanager
def readable(what: str, where: str, hint: str = AGAIN) -> Iterator[None]:
    """Inside, whatever a library raises for a file that is not as such files are becomes `BadFile`: `what` and why."""
    try:
        yield
    except (TaskmergeError, MemoryError):
        raise
    except Exception as error:  # anybody may have written the file, and libraries raise what they like
        said = str(error).strip() or type(error).__name__
        raise BadFile(f"{what}: {said}", where=where, hint=hint) from error


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, links followed, sorted. Raises `BadFile` for a folder that links to one around it."""
    found: list[Path] = []
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, ())]
    met = 0
    while waiting:
        here, around = waiting.pop()
        met += 1
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in around:
            raise BadFile("links to a folder that holds it", where=str(here), hint="remove the link")
        if met > MOST_FOLDERS:
            raise BadFile(f"holds more than {MOST_FOLDERS:,} folders", where=str(folder), hint="name another folder")
        with os.scandir(here) as entries:
            for entry in entries:
                path = here / entry.name
                if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(path)):
                    waiting.append((path, (*around, identity)))
                else:
                    found.append(path)
    return sorted(found)
