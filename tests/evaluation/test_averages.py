"""Scores relative to the experts' on the same data, and the means of what each argument stands for."""

import pytest

from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.scores import Average, Row, Score


def row(encoder: str, task: str, value: float, *, error: bool = False, corruption: str | None = None) -> Row:
    score = Score(value, 100, value - 0.01, value + 0.01, lower_is_better=error)
    metric = "absolute" if error else "accuracy"
    severity = 5 if corruption else None
    return Row(encoder, task, task, "test", metric, score, corruption=corruption, severity=severity)


def test_scores_over_the_experts_and_errors_under_them() -> None:
    rows = [
        row("expert:a", "a", 0.8),
        row("expert:b", "b", 0.5, error=True),
        row("m", "a", 0.6),
        row("m", "b", 1.0, error=True),
    ]
    assert [one.normalised for one in normalised(rows)] == pytest.approx([1.0, 1.0, 0.75, 0.5])


def test_corrupted_scores_are_relative_to_the_expert_on_the_same_pictures() -> None:
    rows = [
        row("expert:a", "a", 0.8), row("expert:a", "a", 0.4, corruption="jpeg"), row("m", "a", 0.3, corruption="jpeg")
    ]  # fmt: skip
    assert normalised(rows)[-1].normalised == pytest.approx(0.75)


def test_another_tasks_expert_is_no_reference() -> None:
    assert normalised([row("expert:a", "b", 0.8), row("m", "b", 0.6)])[1].normalised is None


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_an_expert_that_scores_nothing_is_no_reference(value: float) -> None:
    rows = normalised([row("expert:a", "a", value), row("m", "a", 0.6)])
    assert [one.normalised for one in rows] == [None, None]


def test_the_experts_have_one_mean_over_their_own_tasks() -> None:
    rows = normalised([row("expert:a", "a", 0.8), row("expert:b", "b", 0.6), row("m", "a", 0.4), row("m", "b", 0.6)])
    found = averages(rows, {"expert:a": "experts", "expert:b": "experts", "m": "m"})
    assert found == (Average("experts", pytest.approx(0.7), 1.0), Average("m", pytest.approx(0.5), pytest.approx(0.75)))


def test_with_cross_every_expert_has_its_own_mean_too() -> None:
    values = {("a", "a"): 0.8, ("a", "b"): 0.3, ("b", "a"): 0.2, ("b", "b"): 0.6}
    rows = normalised([row(f"expert:{encoder}", task, value) for (encoder, task), value in values.items()])
    found = {one.encoder: one for one in averages(rows, {"expert:a": "experts", "expert:b": "experts"})}
    assert found["experts"].average == pytest.approx(0.7)
    assert found["expert:a"].average == pytest.approx(0.55)
    assert found["expert:a"].normalised == pytest.approx((1 + 0.5) / 2)
    assert found["expert:b"].average == pytest.approx(0.4)


def test_one_task_without_a_reference_leaves_the_mean_without() -> None:
    rows = normalised([row("expert:a", "a", 0.8), row("m", "a", 0.4), row("m", "b", 0.6)])
    found = {one.encoder: one for one in averages(rows, {"expert:a": "experts", "m": "m"})}
    assert found["m"].normalised is None
    assert found["m"].average == pytest.approx(0.5)


def test_clean_and_corrupted_have_means_of_their_own() -> None:
    found = averages([row("m", "a", 0.8), row("m", "a", 0.4, corruption="jpeg")], {"m": "m"})
    assert [(one.corruption, one.severity, one.average) for one in found] == [(None, None, 0.8), ("jpeg", 5, 0.4)]
