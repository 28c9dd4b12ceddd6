"""Suite files: strict YAML into the frozen values of `specs.suite`, and where a suite is found."""

import os
from pathlib import Path
from typing import Literal, cast

from taskmerge.errors import BadFile, UsageError, nearest
from taskmerge.specs.document import read_document
from taskmerge.specs.sections import Problems, Section
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_backbone import read_backbone
from taskmerge.specs.suite_sources import read_location
from taskmerge.specs.suite_tasks import FOLDER, read_tasks

FORMAT = 1
NAMES = ("taskmerge.yaml", "suite.yaml")
KEYS = ("taskmerge", "name", "notes", "backbone", "base", "qkv", "tasks")
QKV = ("as-is", "split", "fused")
START = "start with `taskmerge: 1`, `backbone:` and `tasks:`"


def load_suite(path: Path) -> Suite:
    """A suite file, checked key by key; its paths are joined with its folder, and nothing they name is opened.

    Raises UsageError (exit 2) with file:line:column, all problems in one message, or BadFile when it cannot be read.
    """
    document = read_document(path, "suite", START)
    problems = Problems(str(path))
    top = Section(document, problems, document.values).only(KEYS)
    _check_format(top)
    backbone = read_backbone(top, path.parent)
    suite = Suite(
        name=top.text("name") or path.stem,
        where=str(path),
        folder=path.parent,
        backbone=backbone,
        base=read_location(top, "base", path.parent),
        tasks=read_tasks(top, backbone, path.parent),
        qkv=cast(Literal["as-is", "split", "fused"], top.choice("qkv", QKV, "as-is")),
        notes=top.texts("notes"),
    )
    problems.settle()
    return suite


def find_suite(path: Path | None, cwd: Path | None = None) -> tuple[Path, str | None]:
    """The suite file that is meant, and a note where it was not named: `taskmerge.yaml` or `suite.yaml` in `cwd`.

    `path` is a file, a folder that holds one of those, or (if nothing of that name exists) a packaged suite's name.
    """
    if path is None:
        found = _inside(cwd or Path())
        if found is None:
            what = f"no suite given, and neither {' nor '.join(NAMES)} is here"
            raise UsageError(what, where="--suite", hint="name a suite file, or one that `taskmerge suites` lists")
        return found, f"the suite is {found.name} of the working directory (--suite names another)"
    if os.path.isdir(path):
        found = _inside(path)
        if found is None:
            raise BadFile(f"holds no {' or '.join(NAMES)}", where=str(path), hint="name the suite file itself")
        return found, None
    if not os.path.exists(path):  # false for names that no file can have, too
        return _packaged(path), None
    return path, None


def packaged() -> dict[str, Path]:
    """The suites that come with the package, name -> file, in the order of their names."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"), key=lambda file: _in_order(file.stem))}


def _check_format(top: Section) -> None:
    version = top.values.get("taskmerge")
    if "taskmerge" not in top.values:
        top.bad(None, "the version of the format is missing", f"begin with `taskmerge: {FORMAT}`")
    elif version != FORMAT or isinstance(version, bool):
        top.bad("taskmerge", f"format {version} of suites is not known", f"this version reads {FORMAT}")


def _inside(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _packaged(path: Path) -> Path:
    """The packaged suite of that name, or the complaint about a file that is not there."""
    suites = packaged()
    if str(path) in suites:
        return suites[str(path)]
    close = nearest(str(path), suites)
    hint = f"did you mean the packaged suite `{close}`?" if close else "check the path; `taskmerge suites` lists others"
    raise BadFile("no such file", where=str(path), hint=hint)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in names by value: 8 before 14."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split("-")]
