"""Staging names: hidden, locked by the process that writes them, and removed by the next run if it was killed."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCKED = (errno.EWOULDBLOCK, errno.EACCES)
_STAGED = re.compile(r"\.(?P<final>.+)\.tmp-[0-9a-f]{8}", re.DOTALL)


def create_staging_file(final: Path) -> tuple[Path, int]:
    """Create and lock an empty staging file for `final`; returns its path and descriptor."""
    while True:
        path = _staging_path(final)
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if _lock(number) and _is_at(number, path):
            return path, number
        os.close(number)  # another run took it for a stale one between creation and lock


def create_staging_folder(final: Path) -> tuple[Path, int]:
    """Create and lock an empty staging folder for the folder `final`; returns its path and descriptor."""
    while True:
        path = _staging_path(final)
        os.mkdir(path)
        with suppress(FileNotFoundError):  # taken for a stale one, as above
            number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if _lock(number) and _is_at(number, path):
                return path, number
            os.close(number)


@contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final`: gone in the end unless it was renamed, and removed by the next run if this one
    is killed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(final.parent, lambda name: name == final.name)
    folder, lock = create_staging_folder(final)
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)


def remove_stale(folder: Path, finals: Callable[[str], object]) -> None:
    """Remove what killed runs left in `folder` under way to a name that `finals` accepts.

    The staging files of live processes are locked and stay.
    """
    for name in os.listdir(folder):
        staged = _STAGED.fullmatch(name)
        if not staged or not finals(staged["final"]):
            continue
        with suppress(OSError):  # locked by its writer, or not ours to remove
            number = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder / name)
            finally:
                os.close(number)


def is_staging(name: str) -> bool:
    """Whether a file or folder of this name is under way to its own name, or was left there by a killed run."""
    return _STAGED.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file or a whole folder; nothing happens if it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _staging_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp-{secrets.token_hex(4)}")


def _lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: there, stale files stay until somebody removes them.
        return error.errno not in _LOCKED
    return True


def _is_at(number: int, path: Path) -> bool:
    """Whether the descriptor's file still has this name."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
