"""Runs from Python: one page of folders, files and receipts, and the folder beside a report."""

import json
from pathlib import Path

import pytest

import taskmerge
from report_cases import report
from taskmerge.errors import BadFile
from taskmerge.evaluation.results import to_json
from taskmerge.reports.reading import read_runs
from taskmerge.reports.runs import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a report.json."""
    place = tmp_path / "scores"
    place.mkdir()
    (place / "report.json").write_text(json.dumps(to_json(report(n=8))))
    return place


def read(*arguments: str | Path) -> list[tuple[str, str, Path | None]]:
    return [(run.name, run.kind, run.folder) for run in read_runs(arguments)]


def test_a_report_is_called_like_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for argument in (folder, folder / "report.json", ".", "report.json"):
        ((name, kind, place),) = read(argument)
        assert (name, kind) == ("scores", "eval")
        assert place is not None
        assert place.resolve() == folder.resolve()
    assert read(f"mine={folder}")[0][0] == "mine"
    (folder / "other.json").write_bytes((folder / "report.json").read_bytes())
    assert read(folder / "other.json") == [("other", "eval", None)]


def test_an_adaptation_printed_by_json_is_read_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"report": "adapt", "schema_version": 1, "path": "adapted"}')
    with pytest.raises(BadFile, match="lacks a key"):  # of a report, and no longer `path`
        read_runs([tmp_path / "x.json"])


def test_python_gets_the_page_the_command_writes(folder: Path, tmp_path: Path) -> None:
    made = taskmerge.report(folder)
    assert made.html().startswith("<!doctype html>")
    assert made.markdown().startswith("# Evaluation: scores")
    assert {"report.html", "report.md"} <= set(made.files())
    assert taskmerge.report([folder, f"again={folder}"]).page.title == "2 runs compared: evaluation"
    with pytest.raises(taskmerge.TaskmergeError, match="nothing to report on"):
        taskmerge.report([])


def test_a_run_is_a_frozen_value() -> None:
    with pytest.raises(AttributeError):
        Run("a", "eval", {}).name = "b"  # type: ignore[misc]
