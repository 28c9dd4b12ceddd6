"""Results of the measured tables: one JSON file a run, kept as long as what it belongs to stays the same."""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

import taskmerge
from table_rows import Row
from taskmerge.checkpoint.provenance import canonical
from taskmerge.checkpoint.small_files import write_small
from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.scores import Row as ScoredRow
from taskmerge.evaluation.scores import Score
from taskmerge.specs.suite import HubPath, Suite

ROOMS = ("adaptation", "methods", "merging", "numerics", "specs", "workflows")
"""Packages whose code decides what a run makes."""
SETTLED = (2, 3, 4, 7)
"""Exit codes of failures that come again: a full disk, too little memory or a defect may be gone the next time."""
TOO_SLOW = 8
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(?:[^\s/`'\",;:()]+/)+")

Scores = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """One run as it is asked for: a row of a suite's table, with a seed, adapted on a split within so many seconds."""

    suite: Suite
    row: Row
    seed: int = 0
    split: str = "adapt"
    seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run gave no model: exit code, class of the error, and its message without absolute paths."""

    exit_code: int
    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave. Scores are fractions, `peak_memory` bytes; `agreement` is that with the experts on held-out
    items, `choice` what was kept without labels and what labels say of it; `allowed` are the seconds it had."""

    row: str
    command: str
    seed: int
    split: str | None
    allowed: float
    scores: Scores = ()
    average: float | None = None
    normalised: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    updates: int | None = None
    agreement: float | None = None
    choice: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    key: str = ""
    error: Failure | None = None


@dataclass(frozen=True)
class Store:
    """The results of one suite in a folder; `inputs` and `code` are digests of what they belong to."""

    folder: Path
    suite: Suite
    inputs: str
    code: str

    def read(self, asked: Asked) -> Result | None:
        """The result of that very run, unless it was never made, or failed in a way that may be over."""
        path = self._path(asked)
        if not path.exists():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        error = values.pop("error")
        result = Result(**values, error=None if error is None else Failure(**error))
        return result if _settled(result, asked) else None

    def write(self, asked: Asked, result: Result) -> Result:
        """Keeps a result, with its means; the experts' has to be there for the relative one."""
        result = replace(result, key=self.key(asked))
        if result.error is None:
            experts = self.read(replace(asked, row=Row("experts", "given")))
            against = experts.scores if experts is not None else result.scores if asked.row.name == "experts" else ()
            average, relative = means(result.scores, against)
            result = replace(result, average=average, normalised=relative)
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_small(path, json.dumps(asdict(result), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return result

    def key(self, asked: Asked) -> str:
        """SHA-256 of everything that decides the result, seed and split only where the row learns."""
        row, learns = asked.row, asked.row.learns
        about = {
            "row": [row.kind, row.name if row.kind == "given" else "", dict(row.keywords), row.iterations],
            "seed": asked.seed if learns else None, "split": asked.split if learns else None,
            "tasks": [task.name for task in asked.suite.tasks], "inputs": self.inputs, "code": self.code,
            "versions": versions(),
        }  # fmt: skip
        return hashlib.sha256(canonical(about).encode()).hexdigest()

    def _path(self, asked: Asked) -> Path:
        run = f"{asked.split}-{asked.seed}" if asked.row.learns else "once"
        return self.folder / asked.row.name / f"{run}-{self.key(asked)[:12]}.json"


def _settled(result: Result, asked: Asked) -> bool:
    error = result.error
    if error is not None and error.exit_code == TOO_SLOW:
        return result.allowed >= asked.seconds
    return error is None or error.exit_code in SETTLED


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"taskmerge": taskmerge.__version__, "torch": str(torch.__version__)}


def without_paths(text: str) -> str:
    """The text with absolute paths cut down to their last component."""
    return ABSOLUTE.sub("", text)


def means(scores: Scores, experts: Scores) -> tuple[float, float | None]:
    """The plain mean over tasks, and that of scores relative to the experts' (None without those)."""
    rows = [_scored("row", one) for one in scores]
    rows += [_scored(f"expert:{one['task']}", one) for one in experts]
    own = [row for row in normalised(rows) if row.encoder == "row"]
    (both,) = averages(own, {"row": "row"})
    return both.average, both.normalised


def _scored(encoder: str, one: Mapping[str, Any]) -> ScoredRow:
    score = Score(one["score"], one["n"], one["low"], one["high"], one["lower_is_better"])
    return ScoredRow(encoder, one["task"], one["task"], "test", one["metric"], score)


# --- what results belong to ------------------------------------------------------------------------------------


def digest_of_inputs(suite: Suite) -> str:
    """SHA-256 over the suite's file and the bytes of every file that it names: the same in any copy of them."""
    digest = hashlib.sha256(Path(suite.where).read_bytes())
    for location in dict.fromkeys(_locations((suite.backbone, suite.base, suite.tasks))):
        if isinstance(location, HubPath):
            digest.update(str(location).encode())
            continue
        files = sorted(location.rglob("*")) if location.is_dir() else [location]
        for file in files:
            if file.is_file():  # what is missing is for the runs to say
                digest.update(f"{os.path.relpath(file, suite.folder)}\n".encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _locations(value: object) -> Iterator[Path | HubPath]:
    """Every path in a part of a suite."""
    if isinstance(value, Path | HubPath):
        yield value
    elif is_dataclass(value):
        for own in fields(value):
            yield from _locations(getattr(value, own.name))
    elif isinstance(value, Mapping):
        yield from _locations(tuple(value.values()))
    elif isinstance(value, tuple):
        for member in value:
            yield from _locations(member)


def digest_of_code() -> str:
    """SHA-256 over the code of ROOMS: comments, docstrings and layout don't count."""
    root, digest = Path(taskmerge.__file__).parent, hashlib.sha256()
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root).as_posix()}\n{_bare(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def _bare(text: str) -> str:
    """What a module does, without its words: every docstring and other loose string taken out."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            setattr(node, "body", [one for one in body if not _is_words(one)])  # noqa: B010  any kind of node
    return ast.dump(tree)


def _is_words(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
