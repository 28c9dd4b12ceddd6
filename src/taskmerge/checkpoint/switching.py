"""Gives staged files and folders their names: all of them, or none. A journal is undone where this was interrupted.

Needs the standard library alone: this file is run as a script too, in a process of its own, which carries out what the
run has prepared even where that is killed meanwhile.
"""

import errno
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

JOURNAL = "journal"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
READY, GO = "ready\n", b"go\n"
Identity = tuple[int, int, int, int]
"""Device, inode, and of a file its size and the time of its last change: what a change of name leaves as it is."""


@dataclass(frozen=True)
class Step:
    """One change of a name: `staged` goes to `final`, and what was there goes to `kept`.

    Without `staged` the name is given up; without `kept` nothing is there before. `identity` is that of `staged`.
    """

    final: str
    staged: str | None = None
    kept: str | None = None
    identity: Identity | None = None


def step(final: os.PathLike[str], staged: os.PathLike[str] | None = None, kept: os.PathLike[str] | None = None) -> Step:
    """A step from paths as they are now."""
    texts = [None if path is None else _real(os.fspath(path)) for path in (final, staged, kept)]
    return Step(str(texts[0]), texts[1], texts[2], identity_of(texts[1]) if texts[1] is not None else None)


def _real(path: str) -> str:
    """A path without links but for its last part."""
    return os.path.join(os.path.realpath(os.path.dirname(path) or os.curdir), os.path.basename(path))


def identity_of(path: str) -> Identity | None:
    """Which file or folder a name leads to, without following links; None where nothing is there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    content = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    return status.st_dev, status.st_ino, *content


# --- all or none -----------------------------------------------------------------------------------------------


def at_once(change: Step) -> bool:
    """Carries out one step that is all there is to do, if one system call can; whether it could."""
    if change.staged is None or (os.path.isdir(change.staged) and change.kept is not None):
        return change.staged is not None and exchange(change.staged, change.final)
    if change.kept is not None:
        os.replace(change.staged, change.final)
    else:
        second_name(change.staged, change.final)  # unlike a rename, it replaces nothing that came meanwhile
    return True


def write_journal(folder: str, steps: Sequence[Step]) -> None:
    """Keeps the steps in a staging folder, durably, before the first of them is made; all paths as seen from there, by
    whatever name that is reached later."""
    listed = [_seen_from(os.path.realpath(folder), change, os.path.relpath) for change in steps]
    number = os.open(os.path.join(folder, JOURNAL), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(number, "wb") as file:
        file.write(json.dumps([asdict(change) for change in listed]).encode())
        file.flush()
        os.fsync(number)
    sync_folder(folder)


def carry_out(folder: str) -> None:
    """Makes the steps of a folder's journal and removes it, which is what makes them last; on an error none is made."""
    steps = _parsed(folder)
    try:
        for change in steps:
            _do(change)
        for parent in dict.fromkeys(os.path.dirname(change.final) for change in steps):
            sync_folder(parent)
        os.unlink(os.path.join(folder, JOURNAL))
    except BaseException:
        undo(folder)
        raise


def rewind(folder: str) -> None:
    """Takes back what was made of the steps of a folder's journal; may be called again and again."""
    for change in reversed(_read(folder)):
        _undo(change)


def undo(folder: str) -> None:
    """Takes back what was made of the steps of a folder's journal, if it has one, and removes it."""
    rewind(folder)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, JOURNAL))


def has_journal(folder: str | os.PathLike[str]) -> bool:
    """Whether a staging folder holds a journal, which must not be lost."""
    return os.path.lexists(os.path.join(folder, JOURNAL))


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether this user wrote a folder's journal: nobody else's is believed."""
    return os.lstat(os.path.join(folder, JOURNAL)).st_uid == os.geteuid()


def _read(folder: str) -> list[Step]:
    """The steps of a journal; none where it was not written to its end, and so none was made."""
    try:
        return _parsed(folder)
    except (FileNotFoundError, ValueError):
        return []


def _parsed(folder: str) -> list[Step]:
    with open(os.path.join(folder, JOURNAL), "rb") as file:
        listed = json.loads(file.read())
    steps = [Step(**{**one, "identity": one["identity"] and tuple(one["identity"])}) for one in listed]
    return [_seen_from(os.path.realpath(folder), change, _absolute) for change in steps]


def _seen_from(folder: str, change: Step, view: Callable[[str, str], str]) -> Step:
    staged, kept = (None if path is None else view(path, folder) for path in (change.staged, change.kept))
    return Step(view(change.final, folder), staged, kept, change.identity)


def _absolute(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, path))


# --- one step --------------------------------------------------------------------------------------------------


def _do(change: Step) -> None:
    if change.staged is None:
        if change.kept is not None:
            os.rename(change.final, change.kept)
    elif change.kept is None:
        second_name(change.staged, change.final)  # unlike a rename, it replaces nothing that came meanwhile
    elif not os.path.isdir(change.staged):
        second_name(change.final, change.kept)
        os.replace(change.staged, change.final)
    elif not exchange(change.staged, change.final):
        os.rename(change.final, change.kept)
        os.rename(change.staged, change.final)


def _undo(change: Step) -> None:
    """One step back, however far it has come."""
    new = change.staged is not None and identity_of(change.final) == change.identity
    old = change.kept is not None and os.path.lexists(change.kept)
    if new and change.staged is not None and not os.path.lexists(change.staged):
        with suppress(FileNotFoundError):  # the staging folder of another output may have gone
            second_name(change.final, change.staged)
    if old and change.kept is not None and (new or not os.path.lexists(change.final)):
        os.replace(change.kept, change.final)
    elif new and change.kept is None and not os.path.isdir(change.final):
        with suppress(FileNotFoundError):
            os.unlink(change.final)
    elif new and change.kept is not None and change.staged is not None and os.path.isdir(change.staged):
        exchange(change.staged, change.final)


def second_name(path: str, other: str) -> None:
    """A second name for a file; for folders, and where files have but one, its only one."""
    try:
        if not os.path.isdir(path):
            os.link(path, other)
            return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    os.rename(path, other)


def exchange(one: str, other: str) -> bool:
    """Exchanges two names in one call, if the system and the disk can; whether they could."""
    call = _renameat2()
    if call is None:
        return False
    failed = call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    if not failed:
        return True
    import ctypes

    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), one, None, other)


def _renameat2() -> Callable[..., int] | None:
    import ctypes  # what few outputs need

    try:
        call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    return call


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make changes of names in a folder durable."""
    with suppress(OSError):  # some file systems cannot sync folders, and none takes a name back for it
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)


# --- in a process of its own -----------------------------------------------------------------------------------


def main(folder: str) -> None:
    """Waits for the word, carries a folder's journal out, and says how it went: an error's number, text and path.

    Where no word comes the run is dead, and nothing was begun.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # nobody may be left to be told
        sys.stdout.write(READY)
        sys.stdout.flush()
    if sys.stdin.buffer.readline() != GO:
        return
    said: dict[str, object] = {}
    try:
        carry_out(folder)
    except OSError as error:
        path = None if error.filename is None else os.fsdecode(error.filename)
        said = {"errno": error.errno, "strerror": error.strerror, "filename": path}
    with suppress(OSError):
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
