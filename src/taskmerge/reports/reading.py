"""Reads what pages are made of: folders with a report.json, report files, and receipts of merges."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskmerge.documents import read_object, validated
from taskmerge.errors import BadFile, UsageError, nearest
from taskmerge.experts.arguments import named_files
from taskmerge.reports.kinds import KINDS, kind_of
from taskmerge.reports.runs import LARGEST, REPORT, Run

AGAIN = "run the command again that wrote it"
WHOM = (
    "name folders that `eval -o FOLDER/`, `adapt` or `spectrum` wrote, their report.json, or what `merge --json` says"
)


def read_runs(arguments: Sequence[str | Path]) -> list[Run]:
    """The runs in folders and files (`name=path` names one), in their order.

    Raises UsageError for none and for a name that stands twice, BadFile for what is missing, damaged, of another
    schema version, or no report at all.
    """
    if not arguments:
        raise UsageError("there is nothing to report on", hint=WHOM)
    runs: list[Run] = []
    for name, path in named_files(arguments, "report"):
        runs.append(_read(_name(name, path), path))
        twin = next((own for own in runs[:-1] if own.name == runs[-1].name), None)
        if twin is not None:
            raise UsageError(f"two runs are called `{twin.name}`", where=str(path), hint=f"name one: `other={path}`")
    return runs


def run_of(document: dict[str, Any], name: str, where: str, folder: Path | None = None) -> Run:
    """A document as a run, if it is one of ours. Raises BadFile that says what it is otherwise."""
    kind = kind_of(document)
    if kind is None:
        raise BadFile("is no report of taskmerge", where=where, hint=WHOM)
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        hint = f"did you mean `{close}`?" if close else f"there are pages of {', '.join(KINDS)}"
        raise BadFile(f"is a report of kind `{kind}`, of which there is no page", where=where, hint=hint)
    document = {key: value for key, value in document.items() if kind != "adapt" or key != "path"}  # of adapt --json
    hint = f"write it again with this taskmerge's `{KINDS[kind].command}`"
    return Run(name, kind, validated(document, KINDS[kind].load_schema(), where=where, hint=hint), folder)


def _read(name: str, path: Path) -> Run:
    if not path.is_dir():
        document = read_object(path, hint=f"{AGAIN}; {WHOM}", largest=LARGEST)
        return run_of(document, name, str(path), path.parent if path.name == REPORT else None)
    file = path / REPORT
    if not file.exists():
        raise BadFile(f"holds no {REPORT}", where=str(path), hint=_elsewhere(path))
    return run_of(read_object(file, hint=AGAIN, largest=LARGEST), name, str(file), path)


def _elsewhere(folder: Path) -> str:
    """What to name instead of a folder without a report."""
    inner = sorted(own.name for own in folder.iterdir() if (own / REPORT).is_file())
    if inner:
        return f"name the folders in it, such as {folder / inner[0]}"
    if (folder / "state").is_dir():
        return "the adaptation in it is not finished: `adapt --resume` continues it"
    return WHOM


def _name(name: str, path: Path) -> str:
    """What a run is called: a report is called like the folder that it lies in."""
    return path.absolute().parent.name if path.name == REPORT and name == path.stem else name
