"""The runs that a page is made of: folders with a report.json, or files of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT = "report.json"
LARGEST = 256 << 20
"""Bytes of a report, which may have a bit for each item that was scored."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one command wrote: its name on the page, the kind of its document, the document, and the folder beside it
    (None where a file was named)."""

    name: str
    kind: str
    document: Mapping[str, Any]
    folder: Path | None = None
