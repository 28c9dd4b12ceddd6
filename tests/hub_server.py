"""A hub on this machine: the part of its protocol that the real clients ask for, over folders of files, with faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by `models/org/name` or `datasets/org/name`: files by path.

    Files of another revision than `main` are under `models/org/name@refs/pr/15`, with a commit of their own.
    `gated` refuses downloads of a repository; `cut` is a file whose connection breaks after half its bytes, every
    time. `asked` is what clients asked for, in order.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: str | None = None
    asked: list[str] = field(default_factory=list)

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
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{_hash(data)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                if hub.cut == path:
                    self.wfile.write(data[start : len(data) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(data[start:])

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _json(self, document: object, commit: str) -> None:
            self._send(200, json.dumps(document).encode(), {"X-Repo-Commit": commit})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
