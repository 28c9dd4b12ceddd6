"""Tables: what stands where, in which unit, and with which interval."""

from dataclasses import replace
from typing import Any

import pytest

from report_cases import DENSE, TEXT, VISION, report
from taskmerge.evaluation.scores import Score
from taskmerge.evaluation.thresholds import against_thresholds, thresholds
from taskmerge.reports import tables
from taskmerge.reports.tables import Table, written


def cell(table: Table | None, name: str, column: str) -> tables.Cell:
    assert table is not None
    return table.cells[table.names.index(name)][table.columns.index(column)]


def test_tasks_across_checkpoints_down_and_the_means_last() -> None:
    found = report(checkpoints=["one", "two"])
    table = tables.scores(found)
    assert table is not None
    assert table.columns == (*VISION, "average", "normalised")
    assert table.names == ("experts", "base", "one", "two")
    row = next(row for row in found.rows if (row.encoder, row.task) == ("one", "kana"))
    one = cell(table, "one", "kana")
    assert one.text == f"{100 * row.score.value:.1f}"
    assert one.interval == f"{100 * row.score.low:.1f} to {100 * row.score.high:.1f}"
    wide = max(row.score.high - row.score.value, row.score.value - row.score.low)
    assert one.short == f"{one.text} ±{100 * wide:.1f}"
    mean = next(mean for mean in found.averages if mean.encoder == "one")
    assert cell(table, "one", "average").text == f"{100 * mean.average:.1f}"
    assert mean.normalised is not None
    assert cell(table, "one", "normalised").text == f"{100 * mean.normalised:.1f}"
    assert cell(table, "experts", "normalised").text == "100.0"
    own = next(row for row in found.rows if (row.encoder, row.task) == ("expert:kana", "kana"))
    assert cell(table, "experts", "kana").text == f"{100 * own.score.value:.1f}"


def test_the_title_says_what_the_numbers_are() -> None:
    for metrics, said in (
        (["accuracy"], "accuracy, in percent"),
        (["abs_error"], "abs error"),
        (["accuracy", "mean_per_class"], "scores, in percent"),
        (["abs_error", "angle"], "scores"),
    ):
        table = tables.scores(report({f"task{place}": metric for place, metric in enumerate(metrics)}, n=10))
        assert table is not None
        assert table.title == f"small, split test: {said} ± 95% interval"
        assert len(table.notes) == len(set(metrics)), "metrics are explained where there are several"


def test_a_margin_is_half_of_a_narrow_interval_too() -> None:
    found = report(rows=tuple(replace(row, score=Score(0.5, 9, 0.49, 0.502)) for row in report().rows))
    assert cell(tables.scores(found), "merged", "mnist") == tables.Cell("50.0", "1.0", "49.0 to 50.2")


def test_one_task_needs_no_average_and_no_experts_no_normalisation() -> None:
    single = tables.scores(report({"mnist": "accuracy"}))
    assert single is not None
    assert single.columns == ("mnist", "normalised")
    found = report()
    bare = replace(found, averages=tuple(replace(one, normalised=None) for one in found.averages))
    assert tables.scores(bare).columns == (*VISION, "average")  # type: ignore[union-attr]


def test_errors_are_told_in_their_own_unit_and_have_no_average_with_scores() -> None:
    found = report(DENSE)
    table = tables.scores(found)
    assert table is not None
    assert table.columns == (*DENSE, "normalised")
    row = next(row for row in found.rows if (row.encoder, row.task) == ("merged", "normal"))
    assert cell(table, "merged", "normal").text == f"{row.score.value:.3g}"
    assert any(
        "angle (mean angle between normals, in degrees; lower is better): normal" in note for note in table.notes
    )


def test_metrics_are_named_where_they_differ() -> None:
    table = tables.scores(report(TEXT))
    assert table is not None
    assert "pearson+spearman: sentiment; matthews: isa; accuracy: langid" in table.notes
    assert "60 items a task" in table.notes


def test_what_an_adapted_checkpoint_has_seen_is_told() -> None:
    found = report()
    rows = tuple(
        replace(row, protocol="adapt split, 500 updates") if row.encoder == "merged" else row for row in found.rows
    )
    table = tables.scores(replace(found, rows=rows))
    assert table is not None
    assert table.notes[-1] == "merged: adapt split, 500 updates"


def test_the_cross_matrix_and_its_relative_form() -> None:
    assert tables.cross(report()) is None
    found = report(cross=True)
    table, relative = tables.cross(found), tables.relative(found)
    assert table is not None
    assert table.names == table.columns == tuple(VISION)
    row = next(row for row in found.rows if (row.encoder, row.task) == ("expert:mnist", "kana"))
    assert cell(table, "mnist", "kana").text == f"{100 * row.score.value:.1f}"
    assert [cell(relative, task, task).text for task in VISION] == ["100.0"] * 3
    scores = tables.scores(found)
    assert scores is not None
    assert scores.names == ("experts", "base", "merged")


def test_corruptions_are_means_beside_the_clean_one() -> None:
    assert tables.corruptions(report()) is None
    found = report(corruptions=["jpeg", "contrast"])
    table = tables.corruptions(found)
    assert table is not None
    assert table.columns == ("clean", "jpeg 5", "contrast 5", "corrupted")
    assert table.names == ("experts", "base", "merged")
    means = [one.average for one in found.averages if one.encoder == "merged" and one.corruption]
    assert cell(table, "merged", "corrupted").text == f"{100 * sum(means) / 2:.1f}"
    assert tables.scores(found) == tables.scores(report(corruptions=[]))  # clean rows only


def test_comparisons_and_correlations_have_a_table_for_each_checkpoint() -> None:
    found = report(TEXT, corruptions=["jpeg"], compare=True)
    first, second = tables.comparisons(found)
    assert first.title.startswith("base: items lost")
    assert second.names == ("isa", "langid", "isa (jpeg 5)", "langid (jpeg 5)")
    one = next(one for one in found.comparisons if one["encoder"] == "merged" and one["task"] == "langid")
    assert cell(second, "langid", "lost").text == f"{100 * one['lost']['share']:.1f}"
    assert cell(second, "langid", "n").text == "60"
    _, related = tables.correlations(found)
    assert related.columns[0] == "entropy, all"
    assert len(related.columns) == 4
    where = {"encoder": "merged", "task": "langid", "loss": "entropy", "items": "all", "corruption": None}
    other = next(one for one in found.correlations if where.items() <= one.items())
    told = cell(related, "langid", "entropy, all")
    assert told.text == f"{other['score']:.2f}"
    assert told.interval == f"{other['low']:.2f} to {other['high']:.2f}"


def test_choices_are_ranked_and_unknown_numbers_are_dashes() -> None:
    ranked = ({"encoder": "b", "criterion": "agreement", "value": 0.4, "rank": 2, "average": None},
              {"encoder": "a", "criterion": "agreement", "value": 0.6, "rank": 1, "average": 0.5})  # fmt: skip
    table = tables.choices(report(choices=ranked))
    assert table is not None
    assert table.names == ("a", "b")
    assert cell(table, "a", "average").text == "50.0"
    assert cell(table, "b", "average").text == tables.NOTHING


def test_checks_say_what_was_wanted() -> None:
    found = report()
    wanted = thresholds(["mnist=0.999", "average=0.01"], [], tasks=VISION, checkpoints=[])
    table = tables.checks(replace(found, checks=against_thresholds(found, wanted)))
    assert table is not None
    assert table.names == ("merged: mnist", "merged: average")
    assert [row[-1].text for row in table.cells] == ["FAILED", "passed"]
    assert cell(table, "merged: mnist", "wanted").text == "≥ 0.9990"


@pytest.mark.parametrize("made", [{}, {"tasks": TEXT, "cross": True, "compare": True, "corruptions": ["jpeg"]}])
def test_every_table_is_rectangular(made: dict[str, Any]) -> None:
    for table in tables.tables(report(**made)):
        assert len(table.cells) == len(table.names)
        assert {len(row) for row in table.cells} == {len(table.columns)}
        assert table.transposed("x").transposed(table.corner) == table


def test_a_report_without_rows_has_no_tables() -> None:
    assert tables.tables(report(rows=(), averages=())) == ()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.012345, 3, "0.0123"), (1234.5, 3, "1,234"), (531.0, 2, "531"), (0.0, 2, "0"), (99.6, 2, "100")],
)  # fmt: skip
def test_large_numbers_have_no_exponent(value: float, digits: int, text: str) -> None:
    assert written(value, digits) == text
