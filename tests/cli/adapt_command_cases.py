"""Two tasks of the embedded example in the working directory, and adaptations of a second on them."""

import json
from pathlib import Path
from typing import Any

from eval_cases import prepared
from merge_cases import Outcome, digest, run

METHOD = ("-m", "symerge")  # whatever is recommended; another --method behind it counts instead
SHORT = (*METHOD, "--iterations", "3", "--limit", "64")
"""An adaptation of six updates (sequential) or three (joint)."""


def suite_here(here: Path) -> Path:
    """suite.yaml with digits and shapes in the working directory."""
    path = prepared(here / "tiny")
    for file in path.parent.iterdir():
        file.rename(here / file.name)
    path.parent.rmdir()
    return here / path.name


def adapt(*arguments: object) -> Outcome:
    """A short adaptation that must succeed."""
    outcome = run("adapt", *SHORT, *arguments)
    assert outcome.code == 0, outcome.err
    assert "error:" not in outcome.err
    return outcome


def report(folder: Path | str) -> dict[str, Any]:
    """A folder's report without what differs between equal runs."""
    document: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    del document["timing"]
    return document


def trace(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of a folder's trace without their seconds."""
    lines = [json.loads(line) for line in (Path(folder) / "trace.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def contents(folder: Path | str) -> dict[str, str]:
    """Every file of a folder that two equal runs have alike, with its digest."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): digest(path) for path in files if path.name not in ("report.json", "trace.jsonl")
    }
