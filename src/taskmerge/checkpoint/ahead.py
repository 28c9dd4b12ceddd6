"""Digests tensors in a process of its own while this one is still importing torch: a merge's first seconds use one
core of the machine. Needs the standard library alone, here and in that process, which runs this file as a script."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Self

CHUNK = 1 << 22
HEADER_LIMIT = 100_000_000  # bytes; the format's own
Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, and the times (ns) of the last change of content and of status, which nobody can set back."""


def stamp(file: Path | int) -> Stamp | None:
    """What tells one version of a file from another; None when there is no such file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Ahead:
    """Digests of the tensors of some safetensors files, as many as there was time for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._lines: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # no folder for temporary files, no process to be had: then nothing is known ahead
            self._lines = tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving the context
            if files and (os.cpu_count() or 1) > 1:
                command = [sys.executable, "-I", "-S", __file__, *map(str, files)]
                silent = subprocess.DEVNULL
                self._process = subprocess.Popen(command, stdin=silent, stdout=self._lines, stderr=silent)

    def take(self) -> Mapping[Stamp, Mapping[str, str]]:
        """Ends the other process; what it found: SHA-256 (hex) by tensor name, by the version of the file."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        found: dict[Stamp, dict[str, str]] = {}
        if self._lines is None:
            return found
        self._lines.seek(0)
        *whole, _ = self._lines.read().split(b"\n")  # the last line may be cut
        known: dict[str, str] = {}
        for entry in json.loads(b"[%s]" % b",".join(whole)):
            if len(entry) == 2:
                known[entry[0]] = entry[1]
            else:
                known = found.setdefault(tuple(entry), {})
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._lines is not None:
            self._lines.close()


def files_among(words: Iterable[str]) -> list[Path]:
    """The safetensors files that are named by a command line's words, `name=path` and folders included."""
    found: list[Path] = []
    for word in words:
        path = Path(word if os.path.exists(word) else word.partition("=")[2])
        if path.suffix == ".safetensors" and path.is_file():
            found.append(path)
        elif path.name and path.is_dir():
            found += sorted(path.glob("*.safetensors"))
    return list(dict.fromkeys(found))


def main(files: Sequence[str]) -> None:
    """A line of JSON for the version of every file, and below it one a tensor: its name and SHA-256; until the parent
    has gone."""
    buffer, parent = bytearray(CHUNK), os.getppid()
    for path in files:
        with open(path, "rb") as file:
            version = stamp(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_LIMIT:
                continue
            header = json.loads(file.read(length))
            places = {name: one["data_offsets"] for name, one in header.items() if name != "__metadata__"}
            _say(version)
            for name, (start, end) in sorted(places.items(), key=lambda place: place[1]):
                if os.getppid() != parent:
                    return
                digest = _digest(file, 8 + length + start, end - start, memoryview(buffer))
                if stamp(file.fileno()) == version:
                    _say([name, digest])


def _say(entry: object) -> None:
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def _digest(file: BufferedReader, start: int, size: int, buffer: memoryview) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while size > 0:
        count = file.readinto(buffer[: min(size, len(buffer))])
        if not count:
            raise EOFError(file.name)
        digest.update(buffer[:count])
        size -= count
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
