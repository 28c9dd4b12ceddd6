"""Locks on folders in which names change: one run at a time, for as long as the change takes."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from taskmerge.errors import BadOutput

CLAIM = ".taskmerge.tmp-00000000"
"""The lock file: it looks like a staging file, and is gone when nobody holds it."""
LOCKED = (errno.EWOULDBLOCK, errno.EACCES)
PATIENCE = 60.0
"""Seconds to wait for another run: what it does takes milliseconds."""
PAUSE = 0.005


@contextmanager
def claimed(folders: Iterable[Path]) -> Iterator[list[int]]:
    """Holds the locks of all these folders inside; gives their descriptors, which hold them as long as one is open.

    Raises OSError where a folder takes no file, BadOutput where another run does not let go.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_claimed(Path(place))) for place in sorted({os.path.realpath(f) for f in folders})]


@contextmanager
def _claimed(folder: Path) -> Iterator[int]:
    path = folder / CLAIM
    number = _taken(path)
    try:
        yield number
    finally:
        with suppress(OSError):  # it went with its folder, or is another user's
            if is_at(number, path):
                path.unlink()
        with suppress(OSError):
            os.close(number)


def _taken(path: Path) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        number = _opened(path)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise BadOutput("is no file, and in the way", where=str(path), hint="remove it, then run again")
        if lock(number) and is_at(number, path):
            return number
        os.close(number)  # another run has it, or had it and took it away
        if time.monotonic() > end:
            hint = "wait until it is done or end it, then run again"
            raise BadOutput("another run is writing here", where=str(path.parent), hint=hint)
        time.sleep(PAUSE)


def _opened(path: Path) -> int:
    kind = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | kind, 0o666)
    except PermissionError:  # another user's
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | kind)


def lock(number: int, *, known: bool = False) -> bool:
    """Locks an open file or folder; False where another process holds it, or (`known`) nobody can know."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: there, stale files stay until somebody removes them.
        return not known and error.errno not in LOCKED
    return True


def is_at(number: int, path: Path) -> bool:
    """Whether the descriptor's file still has this name."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
