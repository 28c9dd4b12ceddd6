"""Giving finished files their final names: all of them in one switch, one run at a time, or none."""

import filecmp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoint import switching
from taskmerge.checkpoint.claims import claimed
from taskmerge.checkpoint.disk import existing, explained
from taskmerge.checkpoint.layout import Layout, check_target, earlier_output
from taskmerge.checkpoint.staging import close, create_staging_folder, discard
from taskmerge.checkpoint.switching import Step, step, sync_folder
from taskmerge.checkpoint.twins import bring, is_twin, names_in, new_folders
from taskmerge.errors import BadOutput
from taskmerge.stops import held


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


@dataclass(frozen=True)
class Underway:
    """One change of names under way: `area` is the staging folder that keeps its journal, and what is replaced; `locks`
    are the descriptors of all that is locked for it."""

    area: Path
    locks: tuple[int, ...]


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
            _switch([step(final, work, area / "old" if there else None)], Underway(area, (*locks, lock)))
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
    under = Underway(outputs[0].area, (*locks, *(output.lock for output in outputs)))
    changes = [
        change
        for number, output in enumerate(outputs)
        for change in _changes(output, under.area / str(number), overwrite=overwrite)
    ]
    if overwrite and wholes:
        with suppress(OSError):  # some disks have folders that cannot be renamed: then name by name
            if _exchanged(changes, wholes, under):
                return
    _switch_all(changes, under)


def _exchanged(changes: Sequence[Step], wholes: set[Path], under: Underway) -> bool:
    """Makes the changes, those in folders that can be exchanged by exchanging them; False where none can be."""
    known: dict[Path, set[str]] = {}
    switched: list[Step] = []
    rest = list(changes)
    for whole in sorted(wholes):
        inside = [change for change in changes if whole in Path(change.final).parents]
        tree = under.area / f"{len(switched)}.twin"
        if is_twin(tree, whole, inside):
            known[whole] = names_in(whole)
            switched.append(step(whole, tree, under.area / f"{len(switched)}.old"))
            rest = [change for change in rest if change not in inside]
    if not switched:
        return False
    _switch_all([*switched, *rest], under)
    for change in switched:
        bring(change, known[Path(change.final)])
    return True


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
    steps: list[Step] = []
    for number, (name, staged) in enumerate(files.items()):
        final = home / name
        if final.exists():
            os.chmod(staged, stat.S_IMODE(final.stat().st_mode))
        elif modes and output.layout.family.fullmatch(name):
            os.chmod(staged, modes[0])
        place = kept.with_name(f"{kept.name}-{number}.kept")
        steps.append(step(final, staged, place if os.path.lexists(final) else None))
    for number, path in enumerate(path for path in earlier if path.name not in output.files):
        steps.append(step(path, None, kept.with_name(f"{kept.name}-{number}.gone")))
    return steps


def _refuse(existing: Sequence[Path]) -> None:
    if existing:
        hint = "another run wrote it meanwhile: choose another output with -o, or pass --overwrite"
        raise BadOutput("exists already", where=str(existing[0]), hint=hint)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


# --- the switch ------------------------------------------------------------------------------------------------


def _switch_all(changes: Sequence[Step], under: Underway) -> None:
    """Makes changes, those in folders that are not there yet by putting the folders into place."""
    there = [change for change in changes if os.path.isdir(os.path.dirname(change.final))]
    steps = [*new_folders(changes, under.area), *there]
    if steps:
        _switch(steps, under)


def _switch(steps: Sequence[Step], under: Underway) -> None:
    """Makes all steps or none: one alone in one system call, several by a journal and a process of its own."""
    if len(steps) == 1 and switching.at_once(steps[0]):
        sync_folder(os.path.dirname(steps[0].final))
        return
    area = str(under.area)
    try:
        switching.write_journal(area, steps)
    except BaseException:
        switching.undo(area)
        raise
    if not _by_another(under):
        switching.carry_out(area)


def _by_another(under: Underway) -> bool:
    """Has a process carry out the journal that a kill of this one does not reach; False where there is none.

    It shares the locks. What it says went wrong is raised here.
    """
    command = [sys.executable, "-I", "-S", switching.__file__, str(under.area)]
    pipe, silent = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=silent, pass_fds=under.locks, start_new_session=True
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
        switching.rewind(str(under.area))
        return not switching.has_journal(under.area)
    failed = json.loads(said)
    if failed:
        raise OSError(failed["errno"], failed["strerror"], failed["filename"])
    return True


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
