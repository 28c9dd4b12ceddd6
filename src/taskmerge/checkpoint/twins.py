"""Folders that come, or change, as a whole: what a folder will be is built in a staging folder, and takes its place."""

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskmerge.checkpoint import switching
from taskmerge.checkpoint.claims import CLAIM
from taskmerge.checkpoint.disk import existing
from taskmerge.checkpoint.staging import is_staging
from taskmerge.checkpoint.switching import Step, step, sync_folder

MOST = 4096
"""Entries of a folder that is exchanged: each that stays gets a second name first."""


def new_folders(changes: Sequence[Step], area: Path) -> list[Step]:
    """A step for each folder that is not there yet, with all that goes into it put into place beforehand."""
    tops: dict[Path, Path] = {}
    for change in changes:
        final = Path(change.final)
        there = existing(final.parent)
        if there == final.parent or change.staged is None:
            continue
        top = there / final.relative_to(there).parts[0]
        tree = tops.setdefault(top, area / f"{len(tops)}.folder")
        place = tree / final.relative_to(top)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            switching.second_name(change.staged, str(place))
    for tree in tops.values():
        _sync_folders(tree)
    return [step(top, tree) for top, tree in tops.items()]


def is_twin(tree: Path, folder: Path, changes: Sequence[Step]) -> bool:
    """Builds in `tree` what `folder` will be; False, and nothing built, where the two cannot be exchanged."""
    if len(changes) < 2 or all(change.kept is None for change in changes) or not _exchangeable(folder, tree.parent):
        return False  # one file alone changes by itself, and a folder without any of ours is somebody's
    try:
        _build(folder, changes, tree)
    except OSError:  # no links, another disk, files of somebody else: name by name, then
        shutil.rmtree(tree, ignore_errors=True)
        return False
    return True


def _build(folder: Path, changes: Sequence[Step], tree: Path) -> None:
    """Makes `tree` from what stays of `folder`, by second names, and from what is staged."""
    replaced = {change.final for change in changes}
    tree.mkdir()
    for name in sorted(names_in(folder)):
        path, place = folder / name, tree / name
        if path.is_dir() and not path.is_symlink():
            place.mkdir()
            os.chmod(place, stat.S_IMODE(path.stat().st_mode))
        elif str(path) not in replaced:
            os.link(path, place)
    for change in changes:
        if change.staged is not None:
            place = tree / os.path.relpath(change.final, folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(change.staged, place)
    os.chmod(tree, stat.S_IMODE(folder.stat().st_mode))
    _sync_folders(tree)


def switchable(folder: Path) -> bool:
    """Whether a folder can be exchanged for another: it is no mount, and this process does not stand in it."""
    here = Path(os.path.realpath(os.curdir))
    free = folder not in (here, *here.parents) and os.access(folder.parent, os.W_OK | os.X_OK)
    return free and folder.is_dir() and not folder.is_symlink() and not _is_mount(folder)


def _is_mount(folder: Path) -> bool:
    """Whether another disk, or another part of this one, begins here."""
    if os.path.ismount(folder):
        return True
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            places = [line.split()[4].decode("unicode_escape").encode("latin-1") for line in mounts]
    except (OSError, ValueError, IndexError):
        return False
    return os.fsencode(folder) in places


def _exchangeable(folder: Path, area: Path) -> bool:
    """Whether a folder can be exchanged for one in a staging folder beside it: what it holds is plain, not too much,
    and nobody is writing there."""
    if os.path.realpath(area.parent) != str(folder.parent) or not switchable(folder):
        return False
    names = names_in(folder)
    kinds = {stat.S_IFMT(os.lstat(folder / name).st_mode) for name in names}
    plain = kinds <= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
    return plain and len(names) <= MOST and not any(is_staging(os.path.basename(name)) for name in names)


def names_in(folder: Path) -> set[str]:
    """Everything below a folder but lock files, by relative path; staging folders are not looked into."""
    found = set()
    for above, folders, files in os.walk(folder):
        names = [*folders, *(name for name in files if name != CLAIM)]
        found |= {os.path.relpath(os.path.join(above, name), folder) for name in names}
        folders[:] = [name for name in folders if not is_staging(name)]
    return found


def bring(change: Step, known: set[str]) -> None:
    """What came into a folder while it was exchanged for another comes after it."""
    for old in (change.staged, change.kept):
        for name in sorted(names_in(Path(old)) - known) if old is not None and os.path.isdir(old) else ():
            with suppress(OSError):
                os.rename(os.path.join(old or "", name), os.path.join(change.final, name))


def _sync_folders(tree: Path) -> None:
    for above, _, _ in os.walk(tree, topdown=False):
        sync_folder(above)
