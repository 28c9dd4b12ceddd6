"""A hub on this machine: the part of its protocol that the real clients ask for, over folders of files, with faults."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

HOLD = 20.0
"""Seconds that a silent hub keeps a connection, if nobody ends it."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Lie:
    """What a hub answers in place of the truth: another status, other headers (None: left out), other content, pieces
    of a body without an end that was announced (`stream`), another document of its interface, or nothing (`silent`)."""

    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    content: bytes | None = None
    stream: Callable[[], Iterable[bytes]] | None = None
    document: Callable[[Any], Any] = lambda document: document
    silent: bool = False


Liar = Callable[[str, str], Lie | None]
"""From what is asked (`GET`, path) to what is answered; None is the truth."""


@dataclass
class Hub:
    """Repositories by `models/org/name` or `datasets/org/name`: files by path.

    Files of another revision than `main` are under `models/org/name@refs/pr/15`, with a commit of their own.
    `gated` refuses downloads of a repository; `cut` is a file whose connection breaks after half its bytes, every
    time. `asked` is what clients asked for, in order. `liar` is what it does not tell the truth about.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: str | None = None
    asked: list[str] = field(default_factory=list)
    liar: Liar = lambda command, path: None
    closing: threading.Event = field(default_factory=threading.Event)

    def downloads(self) -> list[str]:
        """The paths of files that were sent."""
        sent = [one for one in self.asked if one.startswith("GET") and "/resolve/" in one]
        return sorted(one.split("/resolve/")[1].split("/", 1)[1] for one in sent)

    def found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a revision, which may be said as its commit."""
        for name, files in self.repositories.items():
            known, _, other = name.partition("@")
            commit = _hash(other.encode()) if other else COMMIT
            if known == repository and revision in (other or "main", commit):
                return commit, files
        return None


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _entries(files: dict[str, bytes]) -> list[dict[str, object]]:
    """Files and the folders above them, as the tree lists them."""
    folders = sorted({str(above) for path in files for above in PurePosixPath(path).parents} - {"."})
    return [{"type": "directory", "path": one, "size": 0, "oid": _hash(one.encode())} for one in folders] + [
        {"type": "file", "path": one, "size": len(data), "oid": _hash(data)} for one, data in sorted(files.items())
    ]


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self._answer(parse_qs(body) if not body.startswith("{") else json.loads(body))

        def _answer(self, body: dict[str, list[str]] | None = None) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            self.lie = hub.liar(self.command, self.path) or Lie()
            if self.lie.silent:
                hub.closing.wait(HOLD)
                self.close_connection = True
                return
            path = urlsplit(self.path).path.strip("/")
            if path.startswith("api/"):
                self._api([unquote(part) for part in path.removeprefix("api/").split("/")], body or {})
            elif "/resolve/" in path:
                place, _, rest = path.partition("/resolve/")
                repository = place if place.startswith("datasets/") else f"models/{place}"
                self._file(unquote(repository), *map(unquote, rest.split("/", 1)))
            else:
                self._error(404, "Unknown")

        def _found(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
            """Commit and files of a repository at a revision that exists; else the error has been sent."""
            found = hub.found(repository, revision)
            if found is None:
                known = any(name.partition("@")[0] == repository for name in hub.repositories)
                self._error(404, "RevisionNotFound" if known else "RepoNotFound")
            return found

        def _api(self, path: list[str], body: dict[str, list[str]]) -> None:
            if len(path) < 3:
                self._error(404, "Unknown")
                return
            kind, organisation, name, *rest = path
            what, revision = rest[:2] if rest else ("revision", "main")
            found = self._found(f"{kind}/{organisation}/{name}", revision)
            if found is None:
                return
            commit, files = found
            entries = _entries(files)
            if what == "revision":
                said = {"id": f"{organisation}/{name}", "sha": commit, "private": False, "gated": False, "tags": []}
                self._json({**said, "siblings": [{"rfilename": one} for one in sorted(files)]}, commit)
            elif what == "tree":
                inside = "".join(f"{part}/" for part in rest[2:])
                below = [one for one in entries if str(one["path"]).startswith(inside)]
                whole = "recursive=true" in self.path.lower()
                below = [one for one in below if whole or "/" not in str(one["path"]).removeprefix(inside)]
                self._json(below, commit) if below else self._error(404, "EntryNotFound")
            elif what == "paths-info":
                self._json([one for one in entries if one["path"] in body.get("paths", [])], commit)
            else:
                self._error(404, "Unknown")

        def _file(self, repository: str, revision: str, path: str) -> None:
            found = self._found(repository, revision)
            if found is None:
                return
            commit, files = found
            if repository in hub.gated:
                self._error(403, "GatedRepo")
            elif path not in files:
                self._error(404, "EntryNotFound")
            else:
                self._send_file(path, files[path], commit)

        def _send_file(self, path: str, data: bytes, commit: str) -> None:
            data = data if self.lie.content is None else self.lie.content
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers = {
                "Content-Length": str(len(data) - start), "ETag": f'"{_hash(data)}"', "X-Repo-Commit": commit,
                "Accept-Ranges": "bytes",
            }  # fmt: skip
            if "Range" in self.headers:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._start(206 if "Range" in self.headers else 200, headers)
            if self.lie.stream is not None and self.command == "GET":
                self._stream(self.lie.stream())
            elif self.command == "GET":
                if hub.cut == path:
                    self.wfile.write(data[start : len(data) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(data[start:])

        def _start(self, status: int, headers: Mapping[str, str]) -> None:
            """Status and headers, those of the lie in place of the true ones."""
            self.send_response(self.lie.status or status)
            for name, value in {**headers, **self.lie.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()

        def _stream(self, pieces: Iterable[bytes]) -> None:
            """A body in chunks, until the client has enough."""
            self.close_connection = True
            with suppress(OSError):
                for piece in pieces:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    if hub.closing.is_set():
                        return
                self.wfile.write(b"0\r\n\r\n")

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _json(self, document: object, commit: str) -> None:
            self._send(200, json.dumps(self.lie.document(document)).encode(), {"X-Repo-Commit": commit})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self._start(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers})
            if self.lie.stream is not None:
                self._stream(self.lie.stream())
            elif self.command != "HEAD":
                self.wfile.write(body)

    return Handler
