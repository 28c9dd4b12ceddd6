"""Outputs of every kind, written under faults: what is stopped where, what is then there, what the next run makes."""

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import stat
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint import publish, switching
from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.staging import is_staging
from taskmerge.checkpoint.writer import Sink, commit, stage
from taskmerge.errors import TaskmergeError
from taskmerge.stops import heard

NAMES = tuple(f"layers.{number}.weight" for number in range(5))
SPECS = [OutputSpec(name, "F32", (8,)) for name in NAMES]
SHARD = 64  # bytes: two tensors
CALLS = (
    "open", "pwrite", "fsync", "fdatasync", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "posix_fallocate",
    "chmod", "close", "statvfs",
)  # fmt: skip
KILLING = tuple(name for name in CALLS if name not in ("close", "statvfs"))  # these two change nothing
FAULTS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EPERM)
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORKED = "ignore:.*fork"


# --- what is written -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One checkpoint of an output: where it goes, relative to the folder of the run, and in which form."""

    path: str
    shards: bool = False
    folder: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of output: its parts, which come together, and those that an earlier run has left (none: it is new)."""

    parts: tuple[Part, ...]
    old: tuple[Part, ...] = ()
    whole: str | None = None

    @property
    def over(self) -> bool:
        return bool(self.old)


FILE, SHARDS = Part("out.safetensors"), Part("out.safetensors", shards=True)
FOLDER, SHARDED = Part("out", folder=True), Part("out", shards=True, folder=True)
GRID = tuple(Part(f"out-{number}.safetensors") for number in range(3))
HEADS = (Part("heads/a.safetensors"), Part("heads/b.safetensors"), FILE)
VECTORS = tuple(Part(f"v/{name}.safetensors") for name in "abc")
KINDS: Mapping[str, Kind] = {
    "file": Kind((FILE,)),
    "file over": Kind((FILE,), (FILE,)),
    "shards": Kind((SHARDS,)),
    "shards over": Kind((SHARDS,), (SHARDS,)),
    "shards over file": Kind((SHARDS,), (FILE,)),
    "file over shards": Kind((FILE,), (SHARDS,)),
    "folder": Kind((FOLDER,)),
    "folder over": Kind((FOLDER,), (FOLDER,)),
    "folder of shards over": Kind((SHARDED,), (SHARDED,)),
    "folder over shards": Kind((FOLDER,), (SHARDED,)),
    "grid": Kind(GRID),
    "grid over": Kind(GRID, GRID),
    "heads": Kind(HEADS),
    "heads over": Kind(HEADS, HEADS),
    "heads in a folder": Kind((Part("out/heads/a.safetensors"), FOLDER)),
    "vectors": Kind(VECTORS, whole="v"),
    "vectors over": Kind(VECTORS, VECTORS, whole="v"),
    "new folders": Kind((Part("new/deep/out.safetensors"),)),
}


def write(folder: Path, parts: tuple[Part, ...], seed: int, *, overwrite: bool, whole: str | None = None) -> None:
    """Writes all parts and commits them together."""
    with _staged(folder, parts, seed, overwrite=overwrite, whole=whole) as sinks:
        for place, sink in enumerate(sinks):
            for number, name in enumerate(NAMES):
                sink.write(name, torch.full((8,), float(100 * seed + 10 * place + number)))
            sink.seal({"format": "pt", "seed": str(seed), "place": str(place)})
        commit(sinks, overwrite=overwrite, folder=folder / whole if whole else None)


class _staged:  # noqa: N801  it is used like a function
    """All parts staged; a class, for a generator would hide where its own faults strike."""

    def __init__(
        self, folder: Path, parts: tuple[Part, ...], seed: int, *, overwrite: bool, whole: str | None
    ) -> None:  # fmt: skip
        self._stack, self._seed = ExitStack(), seed
        self._folder, self._parts, self._overwrite, self._whole = folder, parts, overwrite, whole

    def __enter__(self) -> list[Sink]:
        self._stack.__enter__()
        try:
            return [self._stack.enter_context(self._one(part)) for part in self._parts]
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _one(self, part: Part) -> Any:
        sidecars = {"config.json": b"{}", "README.md": b"# %d\n" % self._seed} if part.folder else None
        beside = self._whole or (part.path.partition("/heads/")[0] if "/heads/" in part.path else None)
        return stage(
            self._folder / part.path, SPECS, overwrite=self._overwrite, shard_size=SHARD if part.shards else None,
            folder=part.folder, sidecars=sidecars, beside=self._folder / beside if beside else None,
        )  # fmt: skip


def run(kind: Kind, folder: Path) -> None:
    """The run that is put under faults."""
    write(folder, kind.parts, 2, overwrite=kind.over, whole=kind.whole)


def made_before(kind: Kind, folder: Path) -> Path:
    """A folder as the run finds it."""
    folder.mkdir(parents=True)
    if kind.old:
        write(folder, kind.old, 1, overwrite=False, whole=kind.whole)
    return folder


# --- what is there ---------------------------------------------------------------------------------------------

Shown = dict[str, tuple[int, bytes]]


def shown(folder: Path) -> Shown:
    """Mode and content of every file that a listing shows."""
    found: Shown = {}
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(above, name)
            if not name.startswith("."):
                found[str(path.relative_to(folder))] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
    return found


def left(folder: Path) -> list[str]:
    """Staging files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if is_staging(path.name))


def released(folder: Path) -> None:
    """Waits until nobody holds a staging folder any more: the process that gives names outlives a kill of the run."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if all(not _is_held(folder / name) for name in left(folder)):
            return
        time.sleep(0.002)


def _is_held(path: Path) -> bool:
    with suppress(FileNotFoundError):
        number = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(number)
    return False


def seen(folder: Path) -> str | None:
    """What a reader finds who follows an index by the names in it: a mixture of runs, or None."""
    for index in folder.rglob("*.index.json"):
        if any(part.startswith(".") for part in index.relative_to(folder).parts):
            continue
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any(not (index.parent / shard).is_file() for shard in shards):
            return f"{index.name} names shards that are not there"
        if len({seed_of(index.parent / shard) for shard in shards}) > 1:
            return f"{index.name} joins shards of several runs"
    return None


def seed_of(file: Path) -> str:
    """Which run has written a file."""
    return seed_in(file.read_bytes())


def seed_in(content: bytes) -> str:
    """Which run has written these bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return str(header["__metadata__"]["seed"])


# --- processes and faults --------------------------------------------------------------------------------------

DONE, REFUSED, BROKEN = 0, 6, 99


def start(work: Callable[[], None], log: Path) -> int:
    """Runs something in a forked process, in a group of its own; its id. It ends with 0, an error's exit code, 128
    and a signal's number, or 99."""
    child = os.fork()
    if child:
        return child
    code, finish = BROKEN, os._exit
    try:
        os.setsid()
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        with heard() as stop:
            try:
                work()
                code = DONE
            except TaskmergeError as error:
                code = error.exit_code
                log.write_text(error.message)
            except KeyboardInterrupt:
                code = stop.code
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        finish(code)


def ended(child: int, seconds: float = 60.0) -> int | None:
    """How a process ended; None for a hang. What it has started in its group ends with it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            kill_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    kill_group(child)
    os.waitpid(child, 0)
    return None


def kill_group(child: int) -> None:
    """kill -9 for a process and what it has started in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


Fault = Callable[[str], None]
"""What happens before a call of this name."""


def strike(fault: Fault, number: int, names: tuple[str, ...] = CALLS) -> Callable[[], int]:
    """Puts a fault before the call with this number; says how many calls there were. For a process that dies soon."""
    count = itertools.count(1)
    done = [0]

    def wrapped(name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not (len(arguments) > 1 and arguments[1] & os.O_CREAT):
                return whole(*arguments, **options)
            done[0] = next(count)
            if done[0] != number:
                return whole(*arguments, **options)
            if name == "close":
                whole(*arguments, **options)  # the number is free, whatever close says
            fault(name)
            return None if name == "close" else whole(*arguments, **options)

        return call

    for name in names:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return lambda: done[0]


def killed(name: str) -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(number: int) -> Fault:
    """Ctrl-C, or another signal that asks for an end."""
    return lambda name: os.kill(os.getpid(), number)


def failing(number: int) -> Fault:
    """A call that the system refuses."""

    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def alone() -> None:
    """Names are given in the process itself: a kill is one of everything, as where the power fails."""
    publish._by_another = lambda under: False  # type: ignore[assignment]


# --- one case --------------------------------------------------------------------------------------------------


class Scene:
    """One kind of output, its folder before the run, and what the run leaves when nothing happens."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.kind, self._home = name, KINDS[name], home / name
        self._before = made_before(self.kind, self._home / "before")
        self.old = shown(self._before)
        whole = self.fresh()
        run(self.kind, whole)
        self.new = shown(whole)
        assert self.new != self.old
        assert not left(whole)

    def fresh(self) -> Path:
        """A folder as the run finds it."""
        folder = self._home / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._before, folder)
        return folder

    def count(self, names: tuple[str, ...], *, by_itself: bool) -> int:
        """How many such calls the run makes."""
        told = self._home / "count"

        def work() -> None:
            write = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            if by_itself:
                alone()
            calls = strike(killed, 0, names)
            run(self.kind, folder)
            os.write(write, str(calls()).encode())

        folder = self.fresh()
        assert ended(start(work, self._home / "log")) == DONE, (self._home / "log").read_text()
        return int(told.read_text())

    def struck(self, fault: Fault, number: int, names: tuple[str, ...], *, by_itself: bool) -> tuple[Path, int | None]:
        """The folder after a run into which a fault struck, and how it ended."""
        folder, log = self.fresh(), self._home / "log"
        log.write_text("")

        def work() -> None:
            if by_itself:
                alone()
            strike(fault, number, names)
            run(self.kind, folder)

        return folder, ended(start(work, log))

    def state(self, folder: Path) -> str:
        """Old, new, or what else is there."""
        found = shown(folder)
        if found == self.new:
            return "new"
        if found == self.old:
            return "old"
        return f"neither old nor new: {sorted(found)}"

    def said(self) -> str:
        """What the last run has said."""
        return (self._home / "log").read_text()

    def next_run(self, folder: Path) -> str | None:
        """What is wrong with the run after: it succeeds, or is refused where all is there already."""
        released(folder)
        before = self.state(folder)
        try:
            run(self.kind, folder)
        except TaskmergeError as error:
            if self.kind.over or before != "new" or error.exit_code != REFUSED:
                return f"the next run ends with {error.exit_code}: {error.message} (there was: {before})"
            return None
        if self.state(folder) != "new":
            return f"the next run leaves {self.state(folder)}"
        return f"the next run leaves {left(folder)}" if left(folder) else None


def after_kill(scene: Scene, number: int, *, by_itself: bool) -> str | None:
    """What is wrong after kill -9 before a call: of the run alone, or of all its processes."""
    folder, code = scene.struck(killed, number, KILLING, by_itself=by_itself)
    if code != -signal.SIGKILL:
        return f"it was not killed: {code} {scene.said()}"
    if mixed := seen(folder):
        return mixed
    if not by_itself and scene.state(folder) not in ("old", "new"):
        return scene.state(folder)
    return scene.next_run(folder)


def after_stop(scene: Scene, signal_number: int, number: int) -> str | None:
    """What is wrong after a signal at a call."""
    folder, code = scene.struck(stopped(signal_number), number, KILLING, by_itself=False)
    state = scene.state(folder)
    if code not in (DONE, 128 + signal_number):
        return f"code {code}: {scene.said()}"
    if state not in (("new",) if code == DONE else ("old", "new")):
        return f"code {code} and {state}"
    return f"it leaves {left(folder)}" if left(folder) else scene.next_run(folder)


def after_error(scene: Scene, error: int, number: int, *, by_itself: bool) -> str | None:
    """What is wrong after a call that failed."""
    folder, code = scene.struck(failing(error), number, CALLS, by_itself=by_itself)
    state = scene.state(folder)
    if code not in (DONE, REFUSED):
        return f"code {code}: {scene.said()}"
    if state != ("new" if code == DONE else "old"):
        return f"code {code} and {state}: {scene.said()}"
    if code == REFUSED and str(folder) not in scene.said():
        return f"no path in {scene.said()!r}"
    if code == REFUSED and left(folder) and "journal" not in str([*folder.rglob("*")]):
        return f"it leaves {left(folder)}"
    return scene.next_run(folder)


def cases(scene: Scene) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Every case of a kind: what happens, and the function that says what is wrong then."""
    for by_itself in (False, True):
        where = "of all processes" if by_itself else "of the run"
        for number in range(1, scene.count(KILLING, by_itself=by_itself) + 1):
            yield f"kill {where}, call {number}", lambda n=number, a=by_itself: after_kill(scene, n, by_itself=a)
        for number in range(1, scene.count(CALLS, by_itself=by_itself) + 1):
            error = FAULTS[number % len(FAULTS)]
            what = f"{errno.errorcode[error]} {where}, call {number}"
            yield what, lambda e=error, n=number, a=by_itself: after_error(scene, e, n, by_itself=a)
    for place in range(1, scene.count(KILLING, by_itself=False) + 1):
        for sent in STOPS:
            yield f"signal {sent}, call {place}", lambda s=sent, n=place: after_stop(scene, s, n)


def exchanges() -> bool:
    """Whether this system can exchange two names."""
    return switching._renameat2() is not None
