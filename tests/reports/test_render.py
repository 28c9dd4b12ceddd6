"""Reports as text: every width, no escape codes unless wanted, Markdown that parses, CSV that reads back."""

import csv
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from report_cases import DENSE, TEXT, VISION, report
from taskmerge.reports import render
from taskmerge.reports.layout import arranged, folded
from taskmerge.reports.tables import Cell, Table, scores, tables

MANY = {f"dataset{number}": "accuracy" for number in range(20)}
LONG = [f"merged-cart-rank0.0{number}-coefficient1.{number}" for number in range(1, 9)]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d", text))


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"tasks": MANY, "checkpoints": ["a", "b"], "n": 8},
        {"checkpoints": LONG},
        {"tasks": MANY, "checkpoints": LONG, "n": 8},
        {"tasks": TEXT, "cross": True, "compare": True, "corruptions": ["jpeg"]},
        {"tasks": DENSE, "n": 10},
    ],
)
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(made: dict[str, Any], width: int) -> None:
    found = report(**made)
    text = render.console(found, width=width, colour=False)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for table in tables(found):
        for row in table.cells:
            for cell in row:
                assert cell.short in text
    squeezed = re.sub(r"\s", "", text)
    for name in found.rows[-1].encoder, found.rows[-1].task:
        assert set(name) <= set(squeezed)


def test_a_table_that_fits_stays_in_one_piece_and_one_that_fits_turned_is_turned() -> None:
    table = scores(report(MANY, ["a"], n=8))
    assert table is not None
    assert arranged(table, 1000) == [table]
    (turned,) = arranged(table, 80)
    assert turned.corner == "task"
    assert turned.columns == table.names
    blocks = arranged(scores(report(MANY, LONG, n=8)), 80)  # type: ignore[arg-type]
    assert len(blocks) > 1
    assert [block.title != "" for block in blocks] == [True] + [False] * (len(blocks) - 1)
    assert sum((block.columns for block in blocks), ()) == (*MANY, "average", "normalised")


def test_a_column_wider_than_the_terminal_is_a_block_of_its_own() -> None:
    table = Table("t", "what", ("a", "b"), ("x",), ((Cell("1" * 30), Cell("2" * 30)),))
    assert [block.columns for block in arranged(table, 20)] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("merged-task-arithmetic", 14, ["merged-task-", "arithmetic"]),
        ("entropy, expert wrong", 14, ["entropy,", "expert wrong"]),
        ("short", 14, ["short"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("a_b.c/d", 2, ["a_", "b.", "c/", "d"]),
    ],
)
def test_names_are_folded_where_they_have_joints(text: str, width: int, lines: list[str]) -> None:
    assert folded(text, width).split("\n") == lines


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report()
    assert "\x1b" not in render.console(found, width=80, colour=False)
    assert "\x1b" in render.console(found, width=80, colour=True)
    assert "\x1b" not in render.console(found)  # stdout is no terminal here
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in render.console(found)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in render.console(found)


def test_names_are_text_not_markup() -> None:
    found = report({"[red]task": "accuracy"}, ["[bold]x[/bold]"])
    text = render.console(found, width=120, colour=False)
    assert "[red]task" in text
    assert "[bold]x[/bold]" in text


def test_numbers_stand_under_each_other() -> None:
    cells = ((Cell("100.0"),), (Cell("9.5"),), (Cell("–"),))
    table = Table("t", "name", ("score",), ("a", "b", "c"), cells)
    stream = io.StringIO()
    render._print(table, Console(file=stream, width=40))
    rows = [line.rstrip() for line in stream.getvalue().splitlines() if line.startswith(("a", "b", "c"))]
    assert len({len(row) for row in rows}) == 1


def test_markdown_has_every_number_with_its_interval() -> None:
    found = report({"a|b": "accuracy", "c": "accuracy"}, cross=True)
    text = render.markdown(found)
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == len(tables(found))
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    row = found.rows[-1].score
    assert f"{100 * row.value:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})" in text
    assert "a\\|b" in text


@pytest.mark.parametrize("tasks", [VISION, TEXT, DENSE])
def test_csv_has_a_row_for_each_score_that_reads_back_exactly(tasks: dict[str, str]) -> None:
    found = report(tasks, corruptions=["jpeg"])
    rows = list(csv.DictReader(io.StringIO(render.csv(found))))
    assert len(rows) == len(found.rows)
    for row, wanted in zip(rows, found.rows, strict=True):
        assert (row["dataset"], row["pretrained"], row["model"]) == (wanted.task, wanted.encoder, "small")
        assert row["model_fullname"] == f"small {wanted.encoder}"
        assert float(row["score"]) == wanted.score.value
        assert (float(row["low"]), float(row["high"])) == (wanted.score.low, wanted.score.high)
        assert row["corruption"] == (wanted.corruption or "")


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        ("accuracy", ["acc1", "acc", "ece", "ece_low", "ece_high"]),
        ("mean_per_class", ["mean_per_class_recall"]),
        ("matthews", ["mcc"]),
        ("pearson+spearman", ["pearson_spearmanr", "pearson", "spearmanr"]),
        ("miou", ["miou", "pixel_acc"]),
        ("abs_error", ["abs_err", "rel_err"]),
        ("angle", ["angle"]),
    ],
)
def test_metrics_have_the_names_of_the_field(metric: str, names: list[str]) -> None:
    found = report({"task": metric})
    row = next(csv.DictReader(io.StringIO(render.csv(found))))
    assert set(names) <= set(row)
    assert float(row[names[0]]) == float(row["score"])


def test_each_score_is_one_document_for_clip_benchmark() -> None:
    found = report({"vtab/dtd": "accuracy", "b": "mean_per_class"}, cross=True, corruptions=["jpeg"])
    files = render.clip_benchmark_files(found)
    assert len(files) == len(found.rows)
    assert all(re.fullmatch(r"[\w.+-]+\.json", name) for name in files)
    one = json.loads(files["vtab-dtd_vtab-dtd_merged.json"])
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(one)
    assert one["task"] == "zeroshot_classification"
    assert one["metrics"]["acc1"] == one["score"]
