"""Asks a hub with its own clients, in a process of its own: what the hub answers is not trusted.

The process may write into the clients' caches alone, whatever names the answers hold; it gives up where nothing comes,
where more comes than was announced, and where it is told to wait too long; and what was fetched must be what its ETag
says. Run as a script: a question a line of JSON on standard input, an answer a line on standard output.
"""

import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

TOLD_EVERY = 10.0
"""Seconds between lines of progress, of which there are some before nobody waits any longer."""
UNANNOUNCED = 1 << 30
"""Bytes of a file whose size the hub does not tell: it tells that of all but compressed texts."""
PIECE = 1 << 20
SWOLLEN = 8 << 30
"""Bytes of memory, or half of the machine's, beyond which an answer has no end."""
CREATING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {
    "os.mkdir": (1, 1), "os.rename": (2, 2), "os.link": (2, 2), "os.remove": (1, 1), "os.rmdir": (1, 1),
    "os.truncate": (1, 0), "os.chmod": (1, 1), "os.chown": (1, 1), "shutil.rmtree": (1, 0), "shutil.move": (2, 0),
    "shutil.copyfile": (2, 0),
}  # fmt: skip
"""Events of Python's that change what is on a disk: how many paths their arguments begin with, and how many folders
that are open already (else -1) they end with: whoever opened such a folder was heard then."""
REPOSITORY = re.compile(r"(models|datasets|spaces)--")
SHARED = "blobs"
"""Where newer clients keep what repositories share, unless they are told not to."""
OID, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass
class Guard:
    """Where the clients may write: below `roots`, but in `hub` (the cache of repositories) not into those of others
    than `own`, if that is one, nor into what repositories share. `refused` is the first other path that they tried."""

    roots: tuple[str, ...] = ()
    hub: str = ""
    own: str | None = None
    refused: str | None = None
    active: bool = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook of Python's: raises PermissionError for a path outside."""
        if not self.active:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & CREATING) or (isinstance(mode, str) and any(sign in mode for sign in "wax+"))
            paths = [path] if writes else []
        elif event == "os.symlink":
            source, target = map(os.fsdecode, arguments[:2])
            paths = [target, os.path.join(os.path.dirname(target), source)]
        else:
            count, folders = EVENTS.get(event, (0, 0))
            inside = any(isinstance(number, int) and number >= 0 for number in arguments[len(arguments) - folders :])
            paths = [] if inside else list(arguments[:count])
        for place, path in enumerate(paths):
            if not isinstance(path, str | bytes | os.PathLike):  # a descriptor, or nothing
                continue
            goes_up = self._goes_up(os.fsdecode(path)) and not (event == "os.symlink" and place == 1)
            if goes_up or not self.allows(os.fsdecode(path)):
                self.refused = self.refused or os.fsdecode(path)
                raise PermissionError(1, "outside the cache of the hub's client", os.fsdecode(path))

    def _goes_up(self, path: str) -> bool:
        """Whether a path leads up again once it is in the own repository's folder: no client's own does."""
        inside = path.partition(f"{os.sep}{self.own}{os.sep}")[2] if self.own else ""
        return ".." in inside.split(os.sep)

    def open(self, *places: str) -> None:
        """Lets the clients write below further places, which are made if they are not there."""
        for place in map(os.path.expanduser, map(str, places)):
            with suppress(OSError):  # a cache that can only be read is of use too
                os.makedirs(place, exist_ok=True)
            self.roots = (*self.roots, os.path.realpath(place))

    def allows(self, path: str) -> bool:
        """Whether a path is one that the clients may touch, links on the way followed."""
        folder, name = os.path.split(os.path.abspath(path))
        place = os.path.join(os.path.realpath(folder), name)
        if place == os.devnull or not any(_below(place, root) for root in self.roots):
            return place == os.devnull
        if self.own is None or not _below(place, self.hub):
            return True
        first = os.path.relpath(place, self.hub).removeprefix(f".locks{os.sep}").partition(os.sep)[0]
        return first == self.own or (first != SHARED and REPOSITORY.match(first) is None)


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


@dataclass
class Watch:
    """What has come so far, and when the last of it did; says so, and ends the process where nothing comes any more."""

    where: str = ""
    patience: float = 0.0
    came: float = 0.0
    counts: dict[object, float] = field(default_factory=dict)
    said: str = ""
    busy: bool = False
    loud: bool = True
    mute: bool = False
    answer: Callable[[dict[str, Any]], None] = print

    def note(self, count: float = 0, by: object = None) -> None:
        """Something came: `count` bytes, as one of several bars counts them, which may count the same."""
        self.came = time.monotonic()
        self.counts[by] = self.counts.get(by, 0) + count

    @contextmanager
    def over(self, where: str, patience: float) -> Iterator[None]:
        """Inside, something has to come every `patience` seconds."""
        self.where, self.patience, self.counts, self.said = where, patience, {}, ""
        self.note()
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def run(self) -> None:
        """Looks twice a second, for ever."""
        limit = min(SWOLLEN, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        told, asking = time.monotonic(), os.getppid()
        while True:
            asleep(0.5)
            now = time.monotonic()
            if os.getppid() != asking:
                shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
                os._exit(1)
            if not self.busy:
                told = now
                continue
            silent = now - self.came
            if silent > self.patience:
                self._give_up({"silent": self.patience, "said": self.said})
            if _memory() > limit:
                self._give_up({"swollen": limit})
            every = min(TOLD_EVERY, self.patience / 4)
            if now - told >= every and not self.mute and (self.loud or silent >= every):
                told = now
                self._tell(silent, every)

    def _tell(self, silent: float, every: float) -> None:
        so_far = f"{max([*self.counts.values()]) / 1e6:,.1f} MB so far"
        waits = f", nothing for {silent:.0f} s, gives up after {self.patience:.0f} s" if silent >= every else ""
        print(f"fetching {self.where}: {so_far}{waits}", file=sys.stderr, flush=True)

    def _give_up(self, answer: dict[str, Any]) -> NoReturn:
        self.answer(answer)
        os._exit(0)


def _memory() -> int:
    """The most that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


asleep = time.sleep  # the one that nobody watches


class TooLong(Exception):
    """The hub asks to wait longer than anybody does."""


class Longer(OSError):
    """More bytes came than were announced."""


@dataclass
class Bounded:
    """A file that takes no bytes beyond `end`."""

    file: Any
    end: int
    watch: Watch

    def write(self, piece: bytes) -> Any:
        """Writes to the file. Raises `Longer`."""
        self.watch.note(len(piece), Bounded)
        if self.file.tell() + len(piece) > self.end:
            raise Longer("more bytes came than the hub had announced")
        return self.file.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def main(scratch: str) -> None:
    """Answers questions until there are none; `scratch` is a folder for temporary files, which goes at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks ends this one
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print as they like
    guard, watch = Guard(), Watch()
    given = threading.Lock()

    def answer(value: dict[str, Any]) -> None:
        with given:
            print(json.dumps(value), file=answers, flush=True)

    watch.answer = answer
    tempfile.tempdir = scratch
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if not guard.roots:
                _prepare(guard, watch, question, scratch)
            with watch.over(question["where"], question["patience"]):
                found = _answered(question, guard, watch)
        except Exception as error:
            answer({"causes": _causes(error), "outside": guard.refused})
        else:
            answer(found)
    shutil.rmtree(scratch, ignore_errors=True)  # whoever asked may have gone without a word


def _prepare(guard: Guard, watch: Watch, question: dict[str, Any], scratch: str) -> None:
    """Imports the client, and has it and Python watched from here on.

    What a repository says of its files is no reason to share them with others: each keeps its own.
    """
    os.environ["HF_HUB_DISABLE_SHARED_BLOBS"] = "1"
    bars, utils = import_module("tqdm.std"), import_module("huggingface_hub.utils")
    from huggingface_hub import constants, file_download

    watch.mute, watch.loud = utils.are_progress_bars_disabled(), not sys.stderr.isatty()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    _count(bars.tqdm, watch)
    _bound(file_download, constants, watch)
    _limit_sleep(watch, question["pace"])
    logging.getLogger("huggingface_hub").addHandler(_Last(watch))
    names = ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE")
    guard.open(scratch, *(getattr(constants, name) for name in names if hasattr(constants, name)))
    guard.hub = os.path.realpath(constants.HF_HUB_CACHE)
    sys.addaudithook(guard.hear)
    threading.Thread(target=watch.run, daemon=True).start()


def _count(bar: Any, watch: Watch) -> None:
    """Has every bar of progress, shown or not, say what came."""
    update = bar.update

    def counted(self: Any, n: float | None = 1) -> Any:
        watch.note((n or 0) if getattr(self, "unit", "") == "B" else 0, id(self))
        return update(self, n)

    bar.update = counted


def _bound(file_download: Any, constants: Any, watch: Watch) -> None:
    """Lets no file grow beyond what the hub has announced."""
    http_get = file_download.http_get
    constants.DOWNLOAD_CHUNK_SIZE = PIECE  # a slow line is heard of more often

    def bounded(url: str, temp_file: Any, **options: Any) -> Any:
        announced = options.get("expected_size")
        begin = temp_file.tell() - options.get("resume_size", 0)
        end = begin + (UNANNOUNCED if announced is None else announced)
        return http_get(url, Bounded(temp_file, end, watch), **options)

    file_download.http_get = bounded


def _limit_sleep(watch: Watch, pace: float) -> None:
    """Waits between attempts as long as clients do, times `pace`; never beyond all patience, whoever asks for it.

    Whoever waits for another process, which fetches the same, waits as long as that takes.
    """

    def limited(seconds: Any) -> None:
        if seconds > watch.patience:
            raise TooLong(f"it asks to wait {seconds:,.0f} s")
        if sys._getframe(1).f_globals.get("__name__", "").startswith("filelock"):
            watch.note()
        asleep(seconds * pace)

    time.sleep = limited


class _Last(logging.Handler):
    """Keeps the last thing that the client said."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.said = record.getMessage().strip().partition("\n")[0]


# --- questions -------------------------------------------------------------------------------------------------


def _answered(question: dict[str, Any], guard: Guard, watch: Watch) -> dict[str, Any]:
    """What a question asks for: a path, or the files of a data set's splits."""
    from huggingface_hub.file_download import repo_folder_name

    own = repo_folder_name(repo_id=question["repository"], repo_type=question["kind"])
    with _guarded(guard, None if question["do"] == "data set" else own), _unlearned(Path(guard.hub, own, "trees")):
        started = time.time()
        found = _load(question, guard, watch) if question["do"] == "data set" else _fetch(question)
        with _unprepared(found):
            _check_blobs(Path(guard.hub, own, "blobs"), started, watch)
    if isinstance(found, str):
        place = os.path.realpath(found) if question["do"] == "folder" else os.path.realpath(os.path.dirname(found))
        if not guard.allows(os.path.join(place, "file")):
            guard.refused = guard.refused or found
            raise PermissionError(1, "outside the cache of the hub's client", found)
        return {"found": found}
    return {"splits": found}


@contextmanager
def _guarded(guard: Guard, own: str | None) -> Iterator[None]:
    guard.own, guard.refused, guard.active = own, None, True
    try:
        yield
    finally:
        guard.active = False


@contextmanager
def _unlearned(lists: Path) -> Iterator[None]:
    """Lists of a repository's files that came while something went wrong are not kept: the next try asks anew."""
    started = time.time()
    try:
        yield
    except BaseException:
        for path in [path for path in lists.glob("*") if path.is_file() and path.stat().st_mtime >= started - 2]:
            path.unlink()
        raise


@contextmanager
def _unprepared(found: str | dict[str, list[str]]) -> Iterator[None]:
    """Tables of a data set that were made of something wrong are not kept: the next try makes them anew."""
    try:
        yield
    except OSError:
        files = [file for split in found.values() for file in split] if isinstance(found, dict) else []
        for folder in {os.path.dirname(file) for file in files}:
            shutil.rmtree(folder)
        raise


def _fetch(question: dict[str, Any]) -> str:
    """A file of a repository, or the folder of all of it that is wanted."""
    import huggingface_hub

    where = {"revision": question["revision"], "repo_type": question["kind"]}
    if question["do"] == "file":
        return str(huggingface_hub.hf_hub_download(question["repository"], question["file"], **where))
    return str(huggingface_hub.snapshot_download(question["repository"], allow_patterns=question["wanted"], **where))


def _load(question: dict[str, Any], guard: Guard, watch: Watch) -> dict[str, list[str]]:
    """Split -> the files of its table, of a data set that `datasets` has put into its cache."""
    guard.active = False  # what is imported is no answer of the hub's
    import datasets
    from datasets import config

    guard.open(config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.HF_MODULES_CACHE)
    if not sys.stderr.isatty():
        datasets.utils.disable_progress_bars()
    watch.note()
    guard.active = True
    found = datasets.load_dataset(
        question["repository"], question["configuration"], revision=question["revision"], trust_remote_code=False
    )  # versions before 4 run, or ask whether to run, a script that a data set brings along
    return {str(name): [file["filename"] for file in split.cache_files] for name, split in found.items()}


def _check_blobs(blobs: Path, started: float, watch: Watch) -> None:
    """Takes away what was fetched since and is not what its ETag says, and raises OSError: another version of the file
    came in between, or something that nobody asked for. ETags that are no digest say nothing."""
    wrong = []
    with suppress(FileNotFoundError):
        for path in sorted(blobs.iterdir()):
            if path.is_file() and path.stat().st_mtime >= started - 2 and not _is_as_named(path, watch):
                path.unlink()
                wrong.append(path.name)
    if wrong:
        raise OSError(f"what came is not what its ETag says ({wrong[0]}): it changed meanwhile, or on the way")


def _is_as_named(path: Path, watch: Watch) -> bool:
    """Whether a file's content has the digest that it is named by: SHA-256, or SHA-1, git's or plain."""
    if SHA256.fullmatch(path.name):
        digests = [hashlib.sha256()]
    elif OID.fullmatch(path.name):
        digests = [hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha1()]
    else:
        return True
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            watch.note()
            for digest in digests:
                digest.update(piece)
    return path.name in {digest.hexdigest() for digest in digests}


def _causes(error: BaseException) -> Sequence[tuple[list[str], str, str]]:
    """The error and what led to it, outermost first: names of its classes, its text, its first line."""
    found: list[tuple[list[str], str, str]] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause).strip()
        first = text.partition("\n")[0] or type(cause).__name__
        found.append(([one.__name__ for one in type(cause).__mro__], text[:20_000], first[:2_000]))
        cause = cause.__cause__ or cause.__context__
    return found


if __name__ == "__main__":
    main(sys.argv[1])
