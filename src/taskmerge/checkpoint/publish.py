"""Giving finished files their final names: all of them in one switch, one run at a time, or none."""

import filecmp
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoint import switching
from taskmerge.checkpoint.claims import CLAIM, claimed
from taskmerge.checkpoint.disk import existing, explained
from taskmerge.checkpoint.layout import Layout, check_target, earlier_output
from taskmerge.checkpoint.staging import close, create_staging_folder, discard, is_staging
from taskmerge.checkpoint.switching import Step, step, sync_folder
from taskmerge.errors import BadOutput
from taskmerge.stops import held

MOST = 4096
"""Entries of a folder that is switched as a whole: each that stays gets a second name first."""
SOON = 10.0
"""Seconds in which the process that gives names must have started."""


@dataclass(frozen=True)
class Sealed:
    """One output, finished under staging names: `files` are final name -> staged, in the order in which they get their
    names. `area` is the staging folder, and `lock` the descriptor by which it is known to be alive.

    Files that are `shared` with other outputs may be there already, if they are the same.
    """

    layout: Layout
    files: Mapping[str, Path]
    area: Path
    lock: int
    shared: bool = False

    @property
    def home(self) -> Path:
        """The folder that they go to, behind links."""
        return Path(os.path.realpath(self.layout.folder))


def publish(outputs: Sequence[Sealed], *, overwrite: bool, folder: Path | None = None) -> None:
    """Puts outputs in place together: whatever happens, all of them are there, or what was there before.

    An output that is a folder, or the `folder` in which all others lie, changes by one exchange of names where that is
    possible. Raises BadOutput where something came into being meanwhile (without `overwrite`), OSError otherwise.
    """
    with held():
        wholes = {output.home for output in outputs if output.layout.is_folder}
        wholes |= set() if folder is None else {Path(os.path.realpath(folder))}
        places: set[Path] = set()
        while True:
            before = places
            with claimed(places) as locks:
                places = _touched(outputs, wholes)
                if places <= before:
                    _publish(outputs, wholes, locks, overwrite=overwrite)
                    return


def publish_folder(work: Path, final: Path) -> None:
    """Puts a staged folder in the place of `final`, which goes, in one exchange of names. Raises BadOutput."""
    with held(), explained(final):
        for path in (*work.rglob("*"), work):
            _sync(path)
        with claimed((final.parent,)) as locks, _area(final) as (area, lock):
            there = os.path.lexists(final)
            if there:
                os.chmod(work, stat.S_IMODE(os.stat(final).st_mode))
            _switch([step(final, work, area / "old" if there else None)], area, [*locks, lock])
            if os.path.lexists(work):
                os.rename(work, area / "older")  # after an exchange the older one is there


@contextmanager
def _area(final: Path) -> Iterator[tuple[Path, int]]:
    """A staging folder beside `final`, and the descriptor by which it is known to be alive."""
    area, lock = create_staging_folder(final)
    try:
        yield area, lock
    finally:
        discard(area)
        close(lock)


# --- what changes ----------------------------------------------------------------------------------------------


def _touched(outputs: Sequence[Sealed], wholes: set[Path]) -> set[Path]:
    """The folders in which names change: each has to be claimed."""
    switched = {whole.parent for whole in wholes if whole.is_dir() and os.access(whole.parent, os.W_OK)}
    return {existing(output.home) for output in outputs} | switched


def _publish(outputs: Sequence[Sealed], wholes: set[Path], locks: Sequence[int], *, overwrite: bool) -> None:
    """Under the locks: refuses or replaces what is there, and switches."""
    area = outputs[0].area
    changes = [
        change
        for number, output in enumerate(outputs)
        for change in _changes(output, area / str(number), overwrite=overwrite)
    ]
    known: dict[Path, set[str]] = {}
    switched: list[Step] = []
    for whole in sorted(wholes) if overwrite else ():
        inside = [change for change in changes if whole in Path(change.final).parents]
        tree = area / f"{len(switched)}.twin"
        if _is_twin(tree, whole, inside):
            known[whole] = _names(whole)
            switched.append(step(whole, tree, area / f"{len(switched)}.old"))
            changes = [change for change in changes if change not in inside]
    steps = [
        *switched,
        *_new_folders(changes, area),
        *(one for one in changes if os.path.isdir(Path(one.final).parent)),
    ]
    if steps:
        _switch(steps, area, [*locks, *(output.lock for output in outputs)])
    for change in switched:
        _bring(change, known[Path(change.final)])


def _changes(output: Sealed, kept: Path, *, overwrite: bool) -> list[Step]:
    """An output's steps, each by itself; what it replaces, which goes to names that begin like `kept`, decides the
    mode of what comes."""
    home, files = output.home, dict(output.files)
    earlier = [home / path.name for path in earlier_output(output.layout)]
    may_be_there = files if output.shared else output.layout.companions
    for name in [name for name in may_be_there if _same(home / name, files[name])]:
        del files[name]
        earlier = [path for path in earlier if path.name != name]
    if not overwrite:
        _refuse([*(home / name for name in files if os.path.lexists(home / name)), *earlier])
    check_target(output.layout, overwrite=True)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in earlier if path.exists()]
    steps = []
    for number, (name, staged) in enumerate(files.items()):
        final = home / name
        if final.exists():
            os.chmod(staged, stat.S_IMODE(final.stat().st_mode))
        elif modes and output.layout.family.fullmatch(name):
            os.chmod(staged, modes[0])
        steps.append(
            step(final, staged, kept.with_name(f"{kept.name}-{number}.kept") if os.path.lexists(final) else None)
        )
    gone = [path for path in earlier if path.name not in output.files]
    return steps + [step(path, None, kept.with_name(f"{kept.name}-{number}.gone")) for number, path in enumerate(gone)]


def _refuse(existing: Sequence[Path]) -> None:
    if existing:
        hint = "another run wrote it meanwhile: choose another output with -o, or pass --overwrite"
        raise BadOutput("exists already", where=str(existing[0]), hint=hint)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


# --- folders that come or change as a whole ----------------------------------------------------------------------


def _new_folders(changes: Sequence[Step], area: Path) -> list[Step]:
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
        os.rename(change.staged, place)
    for tree in tops.values():
        _sync_folders(tree)
    return [step(top, tree) for top, tree in tops.items()]


def _is_twin(tree: Path, folder: Path, changes: Sequence[Step]) -> bool:
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
    for name in sorted(_names(folder)):
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
    names = _names(folder)
    kinds = {stat.S_IFMT(os.lstat(folder / name).st_mode) for name in names}
    plain = kinds <= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
    return plain and len(names) <= MOST and not any(is_staging(os.path.basename(name)) for name in names)


def _names(folder: Path) -> set[str]:
    """Everything below a folder but lock files, by relative path; staging folders are not looked into."""
    found = set()
    for above, folders, files in os.walk(folder):
        names = [*folders, *(name for name in files if name != CLAIM)]
        found |= {os.path.relpath(os.path.join(above, name), folder) for name in names}
        folders[:] = [name for name in folders if not is_staging(name)]
    return found


def _bring(change: Step, known: set[str]) -> None:
    """What came into a folder while it was exchanged for another comes after it."""
    for old in (change.staged, change.kept):
        for name in sorted(_names(Path(old)) - known) if old is not None and os.path.isdir(old) else ():
            with suppress(OSError):
                os.rename(os.path.join(old or "", name), os.path.join(change.final, name))


# --- the switch ------------------------------------------------------------------------------------------------


def _switch(steps: Sequence[Step], area: Path, held_open: Sequence[int]) -> None:
    """Makes all steps or none: one alone in one system call, several by a journal and a process of its own."""
    if len(steps) == 1 and switching.at_once(steps[0]):
        sync_folder(os.path.dirname(steps[0].final))
        return
    switching.write_journal(str(area), steps)
    if not _by_another(area, held_open):
        switching.carry_out(str(area))


def _by_another(area: Path, held_open: Sequence[int]) -> bool:
    """Has a process carry out the journal that a kill of this one does not reach; False where there is none.

    It shares the locks. What it says went wrong is raised here.
    """
    command = [sys.executable, "-I", "-S", switching.__file__, str(area)]
    pipe, silent = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=silent, pass_fds=tuple(held_open), start_new_session=True
        )
    except OSError:  # no memory, no process, no interpreter: then here
        return False
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != switching.READY.encode():
            return False
        with suppress(BrokenPipeError):
            process.stdin.write(switching.GO)
            process.stdin.close()
        said = process.stdout.readline()
    if not said:  # it was killed: at the end, or on the way
        switching.rewind(str(area))
        return not switching.has_journal(area)
    failed = json.loads(said)
    if failed:
        raise OSError(failed["errno"], failed["strerror"], failed["filename"])
    return True


# --- durability ------------------------------------------------------------------------------------------------


def _sync_folders(tree: Path) -> None:
    for above, _, _ in os.walk(tree, topdown=False):
        sync_folder(above)


def _sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, durable."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    if path.is_dir():
        sync_folder(path)
        return
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
