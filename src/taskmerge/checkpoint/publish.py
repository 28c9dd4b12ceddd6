"""Giving staged files their final names: all of them, the index last, or none."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from taskmerge.checkpoint.layout import Layout, earlier_output
from taskmerge.checkpoint.staging import create_staging_folder, remove
from taskmerge.errors import BadOutput

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def publish(layout: Layout, staged: Mapping[str, Path], work: Path, *, overwrite: bool) -> None:
    """Rename the staged files in `work`, then `work` itself if it is the staging folder of a new output folder.

    An index that outlived its shards would join old and new weights, so an old index goes first and a new one
    comes last: whenever this is interrupted, what is there is whole or has no index.
    """
    placed: list[Path] = []
    old = earlier_output(layout) if overwrite else []
    try:
        for path in old:
            if layout.sharded and path.name not in layout.weights:
                path.unlink()
        for name in layout.names:
            _place(staged[name], work / name, overwrite=overwrite)
            placed.append(work / name)
        for path in old:
            if not layout.sharded and path.name not in layout.weights:
                path.unlink()
        sync_folder(work)
        if work != layout.folder:
            os.rename(work, layout.folder)
            sync_folder(layout.folder.parent)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise


def publish_folder(work: Path, final: Path) -> None:
    """Rename a staged folder to its final name, in place of an older folder of that name, which then goes.

    Interrupted between the two renames, the older one is put back.
    """
    for path in (*(file for file in work.rglob("*") if file.is_file()), work):
        _sync(path)
    old = None
    if final.exists():
        old, number = create_staging_folder(final)
        os.close(number)
        os.rename(final, old)  # onto an empty folder
    try:
        os.rename(work, final)
    except BaseException:
        if old is not None:
            os.rename(old, final)
        raise
    sync_folder(final.parent)
    if old is not None:
        remove(old)


def _sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, durable."""
    if path.is_dir():
        sync_folder(path)
        return
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some file systems cannot sync folders
            os.fsync(number)
    finally:
        os.close(number)


def _place(staged: Path, final: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(staged, final)
        return
    try:
        os.link(staged, final)  # unlike a rename, a link never replaces what came into being meanwhile
        staged.unlink()
    except FileExistsError:
        hint = "another run wrote it meanwhile: choose another output with -o"
        raise BadOutput("exists already", where=str(final), hint=hint) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(staged, final)
