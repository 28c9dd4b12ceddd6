"""`taskmerge report`: pages of runs, what it refuses, and the page that `eval -o FOLDER/` writes."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_cases import prepared
from merge_cases import Outcome, refused, run, tree, write_experts

from page_cases import HOSTILE
from report_cases import report
from taskmerge.errors import plain
from taskmerge.evaluation.results import dumps, to_json

LIMIT = ("--limit", "20", "--no-cache", "--quiet")
Document = dict[str, Any]


def files(folder: Path) -> dict[str, str]:
    """The files below a folder with their digests."""
    return {name: digest for name, digest in tree(folder).items() if digest}


def reported(*arguments: object) -> Outcome:
    outcome = run("report", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def written(path: str, document: Document | None = None, **changes: Any) -> Path:
    """A report.json of an evaluation, changed."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {**(document or to_json(report(checkpoints=["one", "two"]))), **changes}
    file.write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))
    return file


# --- what it writes --------------------------------------------------------------------------------------------


def test_the_page_is_written_and_its_path_printed(here: Path) -> None:
    written("scores/report.json")
    outcome = reported("scores")
    assert outcome.out == "report.html\n"
    assert outcome.err.startswith("Evaluation: scores\n“")
    assert "Checkpoints, best first" in outcome.err
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>\n")
    assert reported("scores", "-o", "page.md", "--quiet").err == ""
    assert Path("page.md").read_text(encoding="utf-8").startswith("# Evaluation: scores\n")


def test_a_folder_gets_page_markdown_and_plots_the_same_each_time(here: Path) -> None:
    file = written("scores/report.json")
    reported(file, "-o", "page")
    first = files(here / "page")
    assert {"report.html", "report.md", "figures/means.svg", "figures/means.png"} <= set(first)
    reported("scores", "-o", "page", "--overwrite")
    assert files(here / "page") == first
    named = [line.partition("](")[2].rstrip(")") for line in Path("page/report.md").read_text().splitlines()
             if line.startswith("![")]  # fmt: skip
    assert named
    assert all((here / "page" / name).is_file() for name in named)


def test_plots_of_an_earlier_page_go_and_other_files_stay(here: Path) -> None:
    written("scores/report.json")
    reported("scores", "-o", "page")
    for name in ("old.svg", "old.png", "mine.svg", "notes.txt"):
        (here / "page" / "figures" / name).write_text("x")
    reported("scores", "-o", "page", "--overwrite")
    left = {path.name for path in (here / "page" / "figures").iterdir()}
    assert {"mine.svg", "notes.txt"} <= left
    assert not {"old.svg", "old.png"} & left


def test_json_says_what_was_written_from_what(here: Path) -> None:
    written("scores/report.json")
    said = json.loads(reported("mine=scores", "-o", "page", "--json").out)
    assert said["runs"] == [{"kind": "eval", "name": "mine"}]
    assert said["page"] == "page"
    assert sorted(said["outputs"]) == sorted(f"page/{name}" for name in files(here / "page"))


def test_several_runs_become_one_page_of_comparison(here: Path) -> None:
    experts = write_experts(here)
    merged = run("merge", *experts.values(), "-m", "average", "--json", "--quiet", "-o", "merged.safetensors")
    assert merged.code == 0
    Path("receipt.json").write_text(merged.out)
    written("first/report.json")
    written("second/report.json", to_json(report(checkpoints=["three"])))
    reported("first", "second", "receipt.json", "-o", "all.html")
    page = Path("all.html").read_text(encoding="utf-8")
    assert "is the best of 3 checkpoints" in page
    for title in ("3 runs compared", "What it took", "first: in short", "second: in short", "receipt: in short"):
        assert title in page


def test_a_pipe_gets_the_page(here: Path) -> None:
    written("scores/report.json")
    reported("scores", "-o", "/dev/null", "--quiet")


def test_hostile_names_are_shown_on_a_terminal(here: Path) -> None:
    found = report(dict.fromkeys(HOSTILE[:4], "accuracy"), HOSTILE[:4], n=10)
    Path("odd.json").write_text(dumps(found), encoding="utf-8")
    outcome = reported("odd.json")
    assert not any(sign in outcome.err for sign in "\x00\x07\x1b\u202e")
    assert plain(HOSTILE[3])[:6] in outcome.err


# --- eval -o FOLDER/ -------------------------------------------------------------------------------------------


def test_eval_writes_a_folder_with_its_page(here: Path) -> None:
    prepared(here / "suite")
    assert run("eval", "base", "-s", "suite/suite.yaml", "-o", "out", *LIMIT).code == 0
    wanted = {"report.json", "report.html", "report.md", "figures/scores.svg", "figures/scores.png"}
    assert wanted <= set(files(here / "out"))
    assert run("eval", "base", "-s", "suite/suite.yaml", "-o", "out.json", *LIMIT).code == 0
    both = [json.loads(Path(path).read_text()) for path in ("out/report.json", "out.json")]
    assert [one.pop("timing") for one in both]
    assert both[0] == both[1]
    reported("out", "-o", "again", "--quiet")
    assert Path("again/report.html").read_bytes() == Path("out/report.html").read_bytes()
    refused(
        6, "eval", "base", "-s", "suite/suite.yaml", "-o", "out", *LIMIT, folder=here, says=("holds files already",)
    )
    assert run("eval", "base", "-s", "suite/suite.yaml", "-o", "out", "--overwrite", *LIMIT).code == 0


# --- what it refuses -------------------------------------------------------------------------------------------


def _with(**changes: Any) -> Callable[[], object]:
    return lambda: written("x/report.json", **changes)


def _text(path: str, text: str) -> Callable[[], object]:
    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    return write


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Path("x").mkdir(), ("x: holds no report.json", "eval -o FOLDER/")),
        (_text("x/model.safetensors", "x"), ("x: holds no report.json",)),
        (_text("x/seed-0/report.json", "{}"), ("x: holds no report.json", "such as x/seed-0")),
        (_text("x/state/y", ""), ("not finished", "--resume")),
        (_text("x/report.json", "{"), ("x/report.json: is not JSON",)),
        (_text("x/report.json", "[1]"), ("x/report.json: is no JSON object",)),
        (_text("x/report.json", "{}"), ("x/report.json: is no report of taskmerge",)),
        (_text("x/report.json", '{"report": 7}'), ("is no report of taskmerge",)),
        (_text("x/report.json", '{"report": "evla"}'), ("is a report of kind `evla`", "did you mean `eval`?")),
        (_text("x/report.json", '{"report": "doctor"}'), ("is a report of kind `doctor`, of which there is no page",)),
        (_with(schema_version=2), ("x/report.json: has schema version 2, this taskmerge reads 1",)),
        (_with(schema_version=...), ("has schema version None",)),
        (_with(rows=7), ("`$.rows` is of another type",)),
        (_with(surplus=1), ("has a key too many",)),
        (_with(averages=...), ("lacks a key",)),
        (_text("x/report.json", '{"outputs": [], "provenance": {}}'), ("lacks a key",)),
        (lambda: None, ("x: there is no such file",)),
    ],
)  # fmt: skip
def test_what_is_no_report_is_one_message(here: Path, make: Callable[[], object], says: tuple[str, ...]) -> None:
    make()
    refused(3, "report", "x", folder=here, says=says)


def test_wrong_usage_is_told_before_anything_is_read(here: Path) -> None:
    written("x/report.json")
    for words, code, says in (
        ((), 2, ("there is nothing to report on",)),
        (("x", "-o", "page.pdf"), 2, ("`.pdf` is no ending of a page",)),
        (("x", "a=x", "a=x"), 2, ("two runs are called `a`",)),
        (("x/report.json", "x"), 2, ("two runs are called `x`",)),
    ):
        refused(code, "report", *words, folder=here, says=says)


def test_nothing_is_replaced_unasked(here: Path) -> None:
    written("x/report.json")
    Path("report.html").write_text("mine")
    refused(6, "report", "x", folder=here, says=("report.html: exists already", "--overwrite"))
    Path("page/figures").mkdir(parents=True)
    Path("page/figures/a.svg").write_text("mine")
    refused(6, "report", "x", "-o", "page", folder=here, says=("holds files already",))
    os.rename("x/report.json", "x/in.html")
    refused(2, "report", "x/in.html", "-o", "x/in.html", "--overwrite", folder=here, says=("is an input",))


def test_a_folder_without_room_to_write_is_told_first(here: Path) -> None:
    written("x/report.json")
    Path("file").write_text("x")
    refused(6, "report", "x", "-o", "file/page.html", folder=here, says=("cannot be written",))


def test_a_report_that_was_cut_anywhere_is_one_message(here: Path) -> None:
    whole = dumps(report({"a": "accuracy"}, ["one"], n=8))
    document = json.loads(whole)
    Path("x").mkdir()
    for place in range(0, len(whole), len(whole) // 12):
        Path("x/report.json").write_text(whole[:place])
        refused(3, "report", "x", folder=here, says=("x/report.json",))
    for key in document:
        changed = copy.deepcopy(document)
        changed[key] = {"odd": [None]}
        Path("x/report.json").write_text(json.dumps(changed))
        outcome = run("report", "x", "-o", "out.html", "--overwrite", "--quiet")
        assert outcome.code == 3, key
        assert outcome.err.count("error:") == 1
