"""Staging names: hidden, locked by the process that writes them, and removed by the next run if it was killed."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskmerge.checkpoint import switching
from taskmerge.checkpoint.claims import CLAIM, claimed, is_at, lock
from taskmerge.checkpoint.disk import explained
from taskmerge.stops import held, unfinished

_STAGED = re.compile(r"\.(?P<final>.+)\.tmp-[0-9a-f]{8}", re.DOTALL)


def create_staging_file(final: Path) -> tuple[Path, int]:
    """Create and lock an empty staging file for `final`; returns its path and descriptor."""
    while True:
        path = _staging_path(final)
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if lock(number) and is_at(number, path):
            return path, number
        os.close(number)  # another run took it for a stale one between creation and lock


def create_staging_folder(final: Path) -> tuple[Path, int]:
    """Create and lock an empty staging folder for the folder `final`; returns its path and descriptor."""
    while True:
        path = _staging_path(final)
        os.mkdir(path)
        try:
            number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # taken for a stale one, as above
            continue
        except OSError:
            remove(path)
            raise
        if lock(number) and is_at(number, path):
            return path, number
        os.close(number)


@contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final`: gone in the end unless it was renamed, and removed by the next run if this one
    is killed. Raises BadOutput."""
    with unfinished():
        folder, number, made = None, None, list[Path]()
        try:
            with held(), explained(final):
                made = make_folders(final.parent)
                remove_stale(final.parent, lambda name: name == final.name)
                folder, number = create_staging_folder(final)
            yield folder
        finally:
            with held():
                if folder is not None and number is not None:
                    remove(folder)
                    close(number)
                for parent in made:
                    with suppress(OSError):  # something is in it
                        parent.rmdir()


def make_folders(folder: Path) -> list[Path]:
    """Makes what is missing of a path; gives the new folders, the innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
    return missing


def settle(folder: Path) -> None:
    """Takes back what killed runs have left half done in `folder`: names of which some had changed, and some not."""
    with suppress(OSError):  # there is none, or nobody may look
        for name in os.listdir(folder):
            if is_staging(name) and switching.has_journal(folder / name):
                _with_dead(folder / name, lambda path: None)


def remove_stale(folder: Path, finals: Callable[[str], object]) -> None:
    """Remove what killed runs left in `folder` under way to a name that `finals` accepts.

    The staging files of live processes are locked and stay, and so do pipes, devices and other people's files.
    """
    with suppress(OSError):
        for name in os.listdir(folder):
            staged = _STAGED.fullmatch(name)
            if staged and name != CLAIM and finals(staged["final"]):
                _with_dead(folder / name, remove)


def _with_dead(path: Path, work: Callable[[Path], None]) -> None:
    """Takes back what a staging file's run has left half done, then `work`, if that run is dead."""
    with suppress(OSError):  # locked by its writer, or not ours
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = stat.S_IFMT(os.fstat(number).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR) or not lock(number, known=True):
                return
            if switching.has_journal(path):
                if not switching.is_ours(path):
                    return
                with claimed([path.parent]):
                    switching.undo(str(path))
            work(path)
        finally:
            close(number)


def is_staging(name: str) -> bool:
    """Whether a file or folder of this name is under way to its own name, or was left there by a killed run."""
    return _STAGED.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file or a whole folder; what is gone, or cannot be removed, is left to the next run."""
    with suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        with suppress(OSError):
            path.rmdir()  # an empty one goes even where no descriptor is left
            return
        shutil.rmtree(path, ignore_errors=True)


def close(number: int) -> None:
    """Close a lock, of which no error counts any more."""
    with suppress(OSError):
        os.close(number)


def discard(area: Path) -> None:
    """Remove a staging folder, unless what it keeps is needed to take back what was left half done."""
    if not switching.has_journal(area):
        remove(area)


def _staging_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp-{secrets.token_hex(4)}")
