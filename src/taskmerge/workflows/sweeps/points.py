"""Points of a sweep on disk: each is stored as it is found, so that a run that was killed goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.disk import explained
from taskmerge.documents import parse_json, read_regular

FOLDER = "sweeps"
LARGEST = 1 << 30
Point = Mapping[str, Any]
"""What tells one point of a sweep from the others, as plain values."""
Result = Mapping[str, Any]


def digest_of_values(values: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(_plain(values).encode()).hexdigest()


def code_version() -> str:
    """SHA-256 over the sources of this package: what was found by other code is found again."""
    home = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass
class Points:
    """The points of one kind that `key` (a digest of inputs, options and code) determines, in a file of `folder`.

    A line a point, synced as it is added; what a kill leaves half written is dropped. A point is read back as it was
    found, to the last digit.
    """

    folder: Path
    kind: str
    key: str
    _found: dict[str, Result] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}-{self.key[:16]}.jsonl"

    def __contains__(self, point: Point) -> bool:
        return _plain(point) in self._found

    def __getitem__(self, point: Point) -> Result:
        return self._found[_plain(point)]

    def add(self, point: Point, result: Result) -> None:
        """Stores what was found at a point. Raises BadOutput where that fails."""
        line = json.dumps([self.key, point, result], sort_keys=True, ensure_ascii=False, allow_nan=False)
        with explained(self.path), open(self.path, "ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._found[_plain(point)] = json.loads(line)[2]

    def _read(self) -> None:
        """Takes what whole lines hold, and cuts off the rest."""
        content = read_regular(self.path, LARGEST)
        whole = 0
        for line in content.splitlines(keepends=True):
            if (entry := _entry(line)) is None or entry[0] != self.key:
                break
            whole += len(line)
            self._found.setdefault(_plain(entry[1]), entry[2])
        if whole < len(content):
            with explained(self.path):
                os.truncate(self.path, whole)


def _entry(line: bytes) -> tuple[str, Point, Result] | None:
    """(key, point, result) of a line; None where it is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    whole = isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, dict) for part in entry[1:])
    return (entry[0], entry[1], entry[2]) if whole else None


def _plain(values: object) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
