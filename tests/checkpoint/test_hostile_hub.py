"""Hubs that do not tell the truth, by the real client: one message in time, nothing outside the cache, nothing kept.

Lies are drawn from a seed, kind by kind. After every one of them the same hub, honest again, must give the true bytes.
"""

import itertools
import os
import random
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hub_server import COMMIT, Hub, Liar, Lie, serving
from taskmerge.checkpoint import hub as module
from taskmerge.checkpoint.hub import load_hub_dataset, resolve
from taskmerge.errors import BadFile
from taskmerge.specs.suite import HubPath

PATIENCE = 1.0
IN_TIME = 12.0  # patience, start of a process, a few attempts
FILES = {"config.json": b'{"model_type": "x"}', "model.safetensors": random.Random(0).randbytes(300_000)}
CHUNKED = {"Content-Length": None, "Transfer-Encoding": "chunked"}


class Place:
    """A cache, and what lies beside it: secrets that are not to be read, and other people's places.

    `own` is the folder of the repository that is asked for, `victim` that of another one in the same cache, `shared`
    what all repositories of it may share.
    """

    def __init__(self, folder: Path, repository: str) -> None:
        self.home, self.outside, self.repository = folder / "home", folder / "outside", repository
        self.own = self.home / "hub" / f"models--{repository.replace('/', '--')}"
        self.victim, self.shared = self.home / "hub" / "models--org--victim", self.home / "hub" / "blobs"
        for path in (self.outside / "there" / "secret.json", self.victim / "snapshots" / COMMIT / "config.json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"a secret")
        (self.victim / "blobs").mkdir(exist_ok=True)

    def elsewhere(self, chance: random.Random, start: Path) -> str:
        """A place outside the cache, or in another repository's folder, as it is called in a folder of this one's."""
        place = chance.choice([
            self.outside, self.outside / "evil", self.outside / "there" / "evil", self.outside / "new" / "folder" / "x",
            self.outside / "there" / "secret.json", self.home.parent / "evil", self.victim / "blobs" / "evil",
            self.victim / "snapshots" / "x", self.shared / "ab" / ("ab" * 32),
        ])  # fmt: skip
        text = str(place) if chance.random() < 0.3 else os.path.relpath(place, start)
        return f"./{text}" if text.startswith("..") and chance.random() < 0.2 else text

    def picture(self) -> dict[str, bytes | None]:
        """Everything beside the cache, and in the other repository's folder, with its content."""
        places = (self.outside, self.victim, self.shared)
        found = [*self.home.parent.glob("*"), *(path for place in places for path in place.rglob("*"))]
        return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(found)}


Kind = Callable[[random.Random, Place], Liar]


def for_files(lie: Lie, *commands: str) -> Liar:
    """Tells the lie about files, to all commands or to some."""
    return lambda command, path: lie if "/resolve/" in path and command in (commands or ("HEAD", "GET")) else None


def for_answers(lie: Lie) -> Liar:
    """Tells the lie where the interface is asked."""
    return lambda command, path: lie if path.startswith("/api/") else None


# --- the kinds -------------------------------------------------------------------------------------------------


def an_etag_that_leads_elsewhere(chance: random.Random, place: Place) -> Liar:
    etag = place.elsewhere(chance, place.own / "blobs")
    return for_files(Lie(headers={chance.choice(["ETag", "X-Linked-Etag"]): chance.choice([etag, f'"{etag}"'])}))


def a_commit_that_leads_elsewhere(chance: random.Random, place: Place) -> Liar:
    return for_files(Lie(headers={"X-Repo-Commit": place.elsewhere(chance, place.own / "snapshots")}))


def a_missing_file_of_a_commit_that_leads_elsewhere(chance: random.Random, place: Place) -> Liar:
    commit = place.elsewhere(chance, place.own / ".no_exist")
    return for_files(Lie(status=404, headers={"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound"}))


def a_revision_that_leads_elsewhere(chance: random.Random, place: Place) -> Liar:
    commit = place.elsewhere(chance, place.own / "snapshots")
    return for_answers(Lie(document=lambda one: {**one, "sha": commit} if isinstance(one, dict) else one))


def a_file_whose_path_leads_elsewhere(chance: random.Random, place: Place) -> Liar:
    path = place.elsewhere(chance, place.own / "snapshots" / COMMIT) + chance.choice(["", ".json", "/config.json"])

    def said(document: Any) -> Any:
        if isinstance(document, list):
            return [{"type": "file", "path": path, "size": 8, "oid": "0" * 40}, *document]
        return {**document, "siblings": [{"rfilename": path}]}

    return for_answers(Lie(document=said))


def a_redirect_to_nowhere(chance: random.Random, place: Place) -> Liar:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{one.getsockname()[1]}/x"
    secret = f"file://{place.outside}/there/secret.json"
    to = chance.choice([nowhere, secret, "http://[", "//", "gopher://127.0.0.1/"])
    return for_files(Lie(status=chance.choice([301, 302, 307, 308]), headers={"Location": to}))


def a_redirect_in_a_circle(chance: random.Random, place: Place) -> Liar:
    status = chance.choice([301, 302, 307])
    around = lambda path: Lie(status=status, headers={"Location": path})  # noqa: E731
    return lambda command, path: around(path) if "/resolve/" in path and command == "GET" else None


def a_body_that_is_short(chance: random.Random, place: Place) -> Liar:
    short = b"x" * chance.randrange(1, 19)
    return for_files(Lie(stream=lambda: [short], headers=CHUNKED), "GET")


def a_body_that_is_long(chance: random.Random, place: Place) -> Liar:
    long = b"x" * (300_000 + chance.choice([1, 1000, 5_000_000]))
    return for_files(Lie(stream=lambda: [long], headers=CHUNKED), "GET")


def a_body_without_end(chance: random.Random, place: Place) -> Liar:
    piece = b"x" * chance.choice([1 << 12, 1 << 20])
    endless = Lie(stream=lambda: itertools.repeat(piece), headers=CHUNKED)
    return chance.choice([for_files(endless, "GET"), for_answers(endless)])


def a_body_in_drips(chance: random.Random, place: Place) -> Liar:
    def drips() -> Iterator[bytes]:
        while True:
            time.sleep(0.3)
            yield b"x"

    return chance.choice([lambda lie: for_files(lie, "GET"), for_answers])(Lie(stream=drips, headers=CHUNKED))


def another_file_in_between(chance: random.Random, place: Place) -> Liar:
    """What comes is of the size that was announced, and of another version."""

    def liar(command: str, path: str) -> Lie | None:
        true = next((data for name, data in FILES.items() if path.endswith(name)), None)
        if true is None or command != "GET":
            return None
        return Lie(content=bytes([true[0] ^ 1]) + true[1:], headers={"ETag": chance.choice(['"new"', None])})

    return liar


def pieces_that_lie_elsewhere(chance: random.Random, place: Place) -> Liar:
    """Xet: the file is to be put together from pieces of another server."""
    content = chance.choice(["ab" * 32, place.elsewhere(chance, place.own / "blobs"), ""])
    route = chance.choice(["/api/none", "http://127.0.0.1:9/none", f"file://{place.outside}/there/secret.json", "x"])
    return for_files(Lie(headers={"X-Xet-Hash": content, "X-Xet-Refresh-Route": route}))


def no_answer(chance: random.Random, place: Place) -> Liar:
    word = chance.choice(["GET", "HEAD"])
    return lambda command, path: Lie(silent=True) if command == word else None


def a_long_wait(chance: random.Random, place: Place) -> Liar:
    seconds = chance.choice([60, 3600, 10**9])
    headers = chance.choice([{"Retry-After": str(seconds)}, {"ratelimit": f'"api";r=0;t={seconds}'}])
    return chance.choice([for_files, for_answers])(Lie(status=429, headers=headers))


def a_server_that_is_down(chance: random.Random, place: Place) -> Liar:
    return chance.choice([for_files, for_answers])(Lie(status=chance.choice([500, 502, 503, 504])))


def an_answer_of_another_kind(chance: random.Random, place: Place) -> Liar:
    other = chance.choice([None, 3, "text", [], [[]], {}, {"sha": None}, {"sha": 3}, [{"type": "file"}], [None]])
    return for_answers(Lie(document=lambda _: other))


WHOLE = (a_revision_that_leads_elsewhere, a_file_whose_path_leads_elsewhere, an_answer_of_another_kind)
"""Lies about a repository, not about a file."""
WAITING = (
    a_body_in_drips, no_answer, a_redirect_to_nowhere, a_server_that_is_down, pieces_that_lie_elsewhere,
)  # fmt: skip
"""Lies that take all patience, or several attempts."""
KINDS = (
    an_etag_that_leads_elsewhere, a_commit_that_leads_elsewhere, a_missing_file_of_a_commit_that_leads_elsewhere,
    a_redirect_in_a_circle, a_body_that_is_short, a_body_that_is_long, a_body_without_end, another_file_in_between,
    a_long_wait, *WHOLE, *WAITING,
)  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture
def place(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Place:
    """One cache for all tests, so that one process asks for all; every test has a repository of its own."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PACE", 0)
    return Place(folder, f"org/x{zlib.crc32(request.node.name.encode())}")


@contextmanager
def lying(hub: Hub, liar: Liar, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, the hub lies, and nobody is patient."""
    hub.asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "PATIENCE", PATIENCE)
        patch.setattr(hub, "liar", liar)
        yield


def refusal(ask: Callable[[], object]) -> str | None:
    """The message of a question's error, which has the code 3; None where it is answered."""
    try:
        ask()
    except BadFile as error:
        return error.message
    return None


def check(kind: Kind, seed: int, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lie, told about a file or all of a repository; then the truth. A lie may do no harm: then it is the truth."""
    chance = random.Random(f"{kind.__name__} {seed}")
    whole = kind in WHOLE or chance.random() < 0.3
    file = None if whole else chance.choice(list(FILES))
    hub.repositories[f"models/{place.repository}"] = dict(FILES)
    location, before, liar = HubPath(place.repository, file), place.picture(), kind(chance, place)
    started = time.monotonic()
    with lying(hub, liar, monkeypatch):
        message = refusal(
            lambda: check_true(resolve(location), file, place, whole=kind is not an_answer_of_another_kind)
        )
    assert time.monotonic() - started < IN_TIME
    assert place.picture() == before
    if message is not None:
        assert message.startswith(f"hub {place.repository}{f'/{file}' if file else ''}: ")
        assert len(message) < 3_000
        assert "\nhint: " in message
        check_true(resolve(location), file, place)
        assert place.picture() == before


def check_true(found: Path, file: str | None, place: Place, *, whole: bool = True) -> None:
    """The true bytes, in the repository's own folder of the cache, and nothing else; `whole`: all of them."""
    assert found.resolve().is_relative_to(place.own)
    paths = {path.name: path for path in found.iterdir()} if file is None else {file: found}
    assert paths.keys() <= FILES.keys()
    assert file or not whole or paths.keys() == FILES.keys()
    for name, path in paths.items():
        assert path.read_bytes() == FILES[name]
        assert path.resolve().is_relative_to(place.own)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in WAITING else (), id=kind.__name__) for kind in KINDS]
)
def test_lies_are_one_message_in_time_and_leave_nothing(
    kind: Kind, hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(kind, 0, hub, place, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_many_lies(kind: Kind, hub: Hub, folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1, 13):
        check(kind, seed, hub, Place(folder, f"{place.repository}-{seed}"), monkeypatch)


def test_whoever_waits_hears_of_it(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module._end_all()  # the next process writes to this test's streams
    with lying(hub, for_files(Lie(silent=True)), monkeypatch):
        message = refusal(lambda: resolve(HubPath(place.repository, "config.json")))
    where = f"hub {place.repository}/config.json"
    assert (message or "").startswith(f"{where}: nothing came for 1 s")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f"fetching {where}: ")]
    assert lines
    assert all("gives up after 1 s" in line for line in lines)


def test_a_secret_is_not_linked_into_the_cache(hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = place.outside / "there" / "secret.json"
    hub.repositories[f"models/{place.repository}"] = dict(FILES)
    with lying(hub, for_files(Lie(headers={"ETag": f'"{secret}"'})), monkeypatch):
        message = refusal(lambda: resolve(HubPath(place.repository, "config.json")))
    assert "names a place outside the cache" in (message or "")
    assert not [path for path in place.home.rglob("*") if path.is_symlink() and path.resolve() == secret]


def test_the_cache_is_made_where_there_is_none(
    hub: Hub, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "no" / "such" / "folder"
    monkeypatch.setenv("HF_HOME", str(home))
    hub.repositories[f"models/{place.repository}"] = dict(FILES)
    assert resolve(HubPath(place.repository, "config.json")).is_relative_to(home)


@pytest.mark.slow
def test_lies_about_data_sets_are_heard_too(hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    location, before = HubPath(place.repository), place.picture()
    hub.repositories[f"datasets/{place.repository}"] = {"test.jsonl": b'{"text": "a", "label": 0}\n'}
    evil = os.path.relpath(place.outside / "evil", place.home / "hub" / "datasets--org--lies" / "blobs")
    for liar in (
        for_files(Lie(headers={"ETag": f'"{evil}"'})),
        for_files(Lie(headers={"X-Repo-Commit": evil})),
        for_files(Lie(status=429, headers={"Retry-After": "9999"})),
        for_files(Lie(content=b'{"text": "b", "label": 0}\n', headers={"ETag": '"0"'}), "GET"),
    ):
        with lying(hub, liar, monkeypatch):
            message = refusal(lambda: load_hub_dataset(location, configuration=None))
        assert (message or "").startswith(f"hub {place.repository}: ")
        assert place.picture() == before
    assert load_hub_dataset(location, configuration=None)["test"]["text"] == ["a"]
