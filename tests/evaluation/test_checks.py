"""Thresholds and baselines: what names mean, what passes, what is refused, and what is said."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from report_cases import DENSE, TEXT, VISION, report
from taskmerge.errors import Mismatch, Missed, UsageError
from taskmerge.evaluation.baseline import against_baseline
from taskmerge.evaluation.intervals import paired
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.selection import average_interval
from taskmerge.evaluation.thresholds import against_thresholds, missed, thresholds, told

MIXED = {"mnist": "accuracy", "depth": "abs_error"}


def under(found: Report, *words: str, tasks: dict[str, str] = VISION, over: tuple[str, ...] = ()) -> Any:
    names = [row.encoder for row in found.rows] + ["experts"]
    return against_thresholds(found, thresholds(words, over, tasks=tasks, checkpoints=names))


def value_of(found: Report, encoder: str, task: str) -> float:
    return next(row.score.value for row in found.rows if (row.encoder, row.task) == (encoder, task))


def with_scores(found: Report, change: Callable[[float], float], task: str = "mnist") -> Report:
    """A report whose scores of the merged checkpoint on one task are changed."""
    rows = tuple(
        replace(row, score=replace(row.score, value=change(row.score.value)))
        if (row.encoder, row.task) == ("merged", task)
        else row
        for row in found.rows
    )
    return replace(found, rows=rows)


def renamed(found: Report, name: str) -> Report:
    return replace(found, rows=tuple(replace(row, encoder=row.encoder.replace("merged", name)) for row in found.rows))


def test_thresholds_hold_for_what_is_not_there_to_compare_with() -> None:
    found = report(checkpoints=["one", "two"])
    records = under(found, "average=0.1", "mnist=0.99")
    assert [(one["name"], one["checkpoint"]) for one in records] == [
        ("average", "one"), ("average", "two"), ("mnist", "one"), ("mnist", "two"),
    ]  # fmt: skip
    assert [one["passed"] for one in records] == [True, True, False, False]
    assert records[2]["found"] == value_of(found, "one", "mnist")
    mean = next(one for one in found.averages if one.encoder == "one")
    assert (records[0]["low"], records[0]["high"]) == average_interval(mean, found)


def test_references_are_checked_where_they_are_named_or_alone() -> None:
    found = report(checkpoints=["merged"])
    (one,) = under(found, "base/mnist=0.01")
    assert one["checkpoint"] == "base"
    (one,) = under(found, "experts/average=0.01")
    assert one["checkpoint"] == "experts"
    alone = report(checkpoints=[])
    assert {one["checkpoint"] for one in under(alone, "mnist=0.01")} == {"expert:mnist", "base"}


def test_a_cross_matrix_and_corrupted_data_are_no_scores_of_a_checkpoint() -> None:
    found = report(checkpoints=[], cross=True, corruptions=["jpeg"])
    assert [one["checkpoint"] for one in under(found, "kana=0.0")] == ["expert:kana", "base"]
    spoilt = replace(found, rows=tuple(row for row in found.rows if row.corruption))
    assert {one["corruption"] for one in under(spoilt, "kana=0.0")} == {"jpeg"}


def test_the_bound_itself_passes() -> None:
    found = report()
    value = value_of(found, "merged", "mnist")
    assert under(found, f"mnist={value!r}")[0]["passed"]
    assert not under(found, f"mnist={value + 1e-6!r}")[0]["passed"]


def test_normalised_and_names_with_slashes_or_signs() -> None:
    tasks = {"a/b": "accuracy", "c=d": "accuracy"}
    found = report(tasks)
    (one, two, three) = under(found, "a/b=0.0", "merged/c=d=0.0", "normalised=1.2", tasks=tasks)
    assert (one["task"], two["task"], three["metric"]) == ("a/b", "c=d", "normalised")
    assert not three["passed"]
    without = replace(found, averages=tuple(replace(mean, normalised=None) for mean in found.averages))
    with pytest.raises(UsageError, match="add `experts`"):
        under(without, "normalised=0.5", tasks=tasks)


def test_errors_have_a_bound_above() -> None:
    found = report(DENSE)
    value = value_of(found, "merged", "angle" if "angle" in DENSE else "normal")
    (one,) = under(found, tasks=DENSE, over=(f"normal={value!r}",))
    assert one["passed"]
    (one,) = under(found, tasks=DENSE, over=(f"normal={value - 1e-3!r}",))
    assert not one["passed"]
    assert "wanted at most" in told(one)


@pytest.mark.parametrize(
    ("under_words", "over_words", "tasks", "said"),
    [
        (["mnits=0.9"], [], VISION, "did you mean `mnist`?"),
        (["avrage=0.9"], [], VISION, "did you mean `average`?"),
        (["merge/mnist=0.9"], [], VISION, "did you mean `merged`?"),
        (["mnist"], [], VISION, "is no threshold"),
        (["mnist=high"], [], VISION, "is no threshold"),
        (["mnist=nan"], [], VISION, "is no threshold"),
        (["=0.9"], [], VISION, "is no threshold"),
        (["mnist=80"], [], VISION, "did you mean mnist=0.8?"),
        (["average=80"], [], VISION, "did you mean average=0.8?"),
        (["depth=0.5"], [], MIXED, "use --fail-over depth=0.5"),
        ([], ["mnist=0.5"], MIXED, "use --fail-under mnist=0.5"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused_before_anything_runs(
    under_words: list[str], over_words: list[str], tasks: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        thresholds(under_words, over_words, tasks=tasks, checkpoints=["merged", "base"])
    assert said in caught.value.message


def test_a_baseline_compares_every_score_item_by_item() -> None:
    now, then = report(seed=0), report(seed=1, data=report(seed=0).data)
    records, warnings = against_baseline(now, then, 1.0)
    assert warnings == ()
    assert len(records) == len(now.rows)
    assert all(one["passed"] for one in records)
    one = next(one for one in records if (one["checkpoint"], one["task"]) == ("merged", "mnist"))
    rows = [next(r for r in found.rows if (r.encoder, r.task) == ("merged", "mnist")) for found in (now, then)]
    assert rows[0].correct is not None
    assert rows[1].correct is not None
    assert (one["difference"], one["low"], one["high"]) == pytest.approx(paired(rows[0].correct, rows[1].correct))
    other = next(one for one in records if one["metric"] == "mean_per_class")
    assert other["low"] is None  # its bits are not its terms


@pytest.mark.parametrize(("loss", "passed"), [(0.0, True), (0.004, True), (0.005, True), (0.006, False), (-0.5, True)])
def test_the_tolerance_is_how_much_worse_a_score_may_be(loss: float, passed: bool) -> None:
    then = report()
    records, _ = against_baseline(with_scores(then, lambda value: value - loss), then, 0.005)
    assert [one["passed"] for one in records if (one["checkpoint"], one["task"]) == ("merged", "mnist")] == [passed]
    assert all(one["passed"] for one in records if one["task"] != "mnist")


def test_of_errors_more_is_worse() -> None:
    then = report(DENSE)
    records, _ = against_baseline(with_scores(then, lambda value: value + 0.1, "depth"), then, 0.05)
    assert [one["name"] for one in records if not one["passed"]] == ["merged/depth"]
    records, _ = against_baseline(with_scores(then, lambda value: value - 0.1, "depth"), then, 0.05)
    assert all(one["passed"] for one in records)


def test_the_only_checkpoints_of_two_reports_are_compared_whatever_their_names() -> None:
    then = report()
    records, warnings = against_baseline(renamed(then, "better"), then)
    assert "better/mnist" in [one["name"] for one in records]
    assert warnings == ()


def test_what_is_in_one_report_only_is_told() -> None:
    now, then = report(checkpoints=["a", "b"]), report(checkpoints=["a", "c"], version="0.0.9")
    records, warnings = against_baseline(now, then, 1.0)
    assert {one["checkpoint"] for one in records} == {"a", "base", *(f"expert:{task}" for task in VISION)}
    assert [one.split(":")[-1].strip() for one in warnings[:2]] == ["c", "b"]
    assert "0.0.9" in warnings[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": "large"}, "suite is `large`"),
        ({"split": "adapt"}, "split is `adapt`"),
        ({"data": ({"task": "mnist", "split": "test", "n": 60, "fingerprint": "other"},)}, "data differs"),
    ],
)
def test_a_baseline_of_something_else_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Mismatch, match=said):
        against_baseline(report(), replace(report(), **change))


def test_baselines_that_cannot_be_compared_are_refused() -> None:
    now = report()
    with pytest.raises(Mismatch, match="no checkpoint of this run"):
        against_baseline(report(checkpoints=["a", "b"]), report(checkpoints=["c", "d"]))
    fewer = replace(now, rows=tuple(row for row in now.rows if row.task != "kana"))
    with pytest.raises(Mismatch, match=r"lacks: base: kana, merged: kana"):
        against_baseline(fewer, now)
    other = replace(now, rows=tuple(replace(row, metric="mean_per_class") for row in now.rows))
    with pytest.raises(Mismatch, match="is scored by mean_per_class here and by accuracy"):
        against_baseline(other, now)
    for tolerance in (-0.1, float("nan")):
        with pytest.raises(UsageError, match="no tolerance"):
            against_baseline(now, now, tolerance)


def test_the_error_says_what_fell_short() -> None:
    found = report()
    records = under(found, "mnist=0.999", "kana=0.0")
    error = missed(records)
    assert isinstance(error, Missed)
    assert error.exit_code == 8
    assert error.message.startswith("1 of 2 checks failed\n  merged: mnist 0.")
    assert "wanted at least 0.999 (95% interval 0." in error.message
    assert missed(records[1:]) is None
    worse, _ = against_baseline(with_scores(found, lambda value: value - 0.1), found, 0.005)
    (failed,) = [one for one in worse if not one["passed"]]
    assert "(-0.1000; 95% interval" in told(failed)
    assert "tolerance 0.005" in told(failed)


def test_equal_bits_have_an_interval_around_zero() -> None:
    records, _ = against_baseline(report(TEXT), report(TEXT))
    (one,) = [one for one in records if (one["checkpoint"], one["task"]) == ("merged", "langid")]
    assert one["difference"] == 0
    assert one["low"] < 0 < one["high"]
    assert np.isclose(one["low"], -one["high"])
