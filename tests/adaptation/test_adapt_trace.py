"""The trace: lines that are read back as they were told, and warnings that need no label."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaptation_cases import TASKS, adapt, clip_suite
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.adaptation.trace import WINDOW, StepRecord, TaskRecord, read_trace, warnings
from taskmerge.errors import BadFile
from taskmerge.specs.suite import Suite

SHARE = st.floats(0, 1)
MAYBE = st.none() | st.floats(0, 10)
TASK = st.builds(
    TaskRecord, items=st.integers(1, 64), kept=SHARE, loss=MAYBE, agreement=st.none() | SHARE, entropy=MAYBE,
    largest_class=st.none() | SHARE,
)  # fmt: skip
RECORD = st.builds(
    StepRecord, update=st.just(0), iteration=st.integers(0, 99),
    tasks=st.dictionaries(st.text(max_size=5), TASK, max_size=3),
    coefficients=st.dictionaries(st.sampled_from(["mean", "low", "high", "zero"]), st.floats(-3, 3)),
    flips=st.integers(0, 9), kept_components=st.none() | SHARE, skipped=st.none() | st.text(max_size=9),
    seconds=st.floats(0, 9), held_out=st.none() | st.dictionaries(st.text(max_size=5), SHARE, max_size=3),
)  # fmt: skip


def record(update: int, **own: Any) -> StepRecord:
    """One of a task `a`."""
    told = {"items": 16, "kept": 1.0, "loss": 1.0, "agreement": 0.9, "entropy": 1.0, "largest_class": 0.3, **own}
    return StepRecord(update, update, {"a": TaskRecord(**told)})


# --- lines -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(RECORD)
def test_a_line_is_read_back_as_it_was_told(record: StepRecord) -> None:
    line = record.line()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    values = json.loads(line)
    tasks = {name: TaskRecord(**own) for name, own in values["tasks"].items()}
    assert StepRecord(**{**values, "tasks": tasks}) == record


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null(bad: float) -> None:
    told = replace(record(1, loss=bad), coefficients={"mean": bad}, watched={"scores": [bad, {"x": bad}]})
    values = json.loads(told.line(), parse_constant=pytest.fail)
    assert values["tasks"]["a"]["loss"] is None
    assert values["coefficients"] == {"mean": None}
    assert values["watched"] == {"scores": [None, {"x": None}]}


def test_a_trace_is_cut_behind_an_update(tmp_path: Path) -> None:
    told = [record(update) for update in range(6)]
    (tmp_path / "trace.jsonl").write_text("".join(one.line() for one in told) + "half a li")
    for update in range(6):
        assert read_trace(tmp_path / "trace.jsonl", update) == told[: update + 1]
    with pytest.raises(BadFile, match="is no trace"):
        read_trace(tmp_path / "trace.jsonl", 6)


@pytest.mark.parametrize("updates", [[0, 1, 3], [1, 2, 3], [0, 0, 1]])
def test_updates_come_one_after_the_other(tmp_path: Path, updates: list[int]) -> None:
    (tmp_path / "trace.jsonl").write_text("".join(record(update).line() for update in updates))
    with pytest.raises(BadFile) as error:
        read_trace(tmp_path / "trace.jsonl", 2)
    assert error.value.exit_code == 3


def test_agreement_is_the_mean_over_tasks() -> None:
    assert record(1).agreement is None
    assert replace(record(1), held_out={}).agreement is None
    assert replace(record(1), held_out={"a": 0.5, "b": 1.0}).agreement == 0.75


# --- warnings --------------------------------------------------------------------------------------------------


def course(first: dict[str, Any], last: dict[str, Any], count: int = 2 * WINDOW) -> list[StepRecord]:
    """A run whose first half tells one thing and whose second half another."""
    return [record(update, **(first if update < count // 2 else last)) for update in range(count)]


def test_entropy_that_falls_while_agreement_falls_is_no_guide() -> None:
    told = warnings(course({"entropy": 1.0, "agreement": 0.9}, {"entropy": 0.4, "agreement": 0.8}), {"a": 10})
    assert len(told) == 1
    assert "`a`: entropy falls (-0.60 nats)" in told[0]
    assert "(-10.0 points)" in told[0]
    assert "--objective self" in told[0]


@pytest.mark.parametrize(("first", "last"), [
    ({"entropy": 1.0, "agreement": 0.9}, {"entropy": 0.4, "agreement": 0.9}),
    ({"entropy": 1.0, "agreement": 0.9}, {"entropy": 0.4, "agreement": 0.885}),  # within what batches vary by
    ({"entropy": 1.0, "agreement": 0.9}, {"entropy": 1.2, "agreement": 0.5}),  # entropy is not what misleads
    ({"entropy": None, "agreement": None}, {"entropy": None, "agreement": None}),
])  # fmt: skip
def test_nothing_is_said_where_nothing_goes_wrong(first: dict[str, Any], last: dict[str, Any]) -> None:
    assert warnings(course(first, last), {"a": 10}) == []


def test_predictions_that_fall_into_one_class() -> None:
    told = warnings(course({"largest_class": 0.2}, {"largest_class": 0.95}), {"a": 10})
    assert told == ["`a`: 95 percent of the last items are predicted to be of one class"]
    assert warnings(course({"largest_class": 0.2}, {"largest_class": 0.85}), {"a": 10}) == []
    assert warnings(course({"largest_class": 0.95}, {"largest_class": 0.95}), {"a": 10}) == []  # it was so before
    assert warnings(course({"largest_class": 0.2}, {"largest_class": 1.0}), {"a": 1}) == []
    assert warnings(course({"largest_class": 0.2}, {"largest_class": 1.0}), {"b": 10}) == []


def test_a_run_is_judged_by_updates_of_its_task_of_which_there_are_enough() -> None:
    bad = ({"entropy": 1.0, "agreement": 0.9}, {"entropy": 0.4, "agreement": 0.5})
    assert warnings(course(*bad, count=2 * WINDOW - 2), {"a": 10}) == []
    between = [StepRecord(99, 0, {"b": TaskRecord(1, 1.0, 1.0, 1.0, 1.0)})] * 50
    told = course(*bad)
    assert len(warnings([*told[:WINDOW], *between, *told[WINDOW:]], {"a": 10, "b": 3})) == 1
    assert warnings([], {"a": 10}) == []


# --- of a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("trace"))


def test_the_trace_of_a_run(suite: Suite, tmp_path: Path) -> None:
    """The start first, then every update: tasks in it, statistics of coefficients, flips and bits that are on."""
    adapt(suite, tmp_path / "out", method="adarank", iterations=3, mask_lr=0.06, rank=0.5)
    start, *updates = read_trace(tmp_path / "out" / "trace.jsonl", 3)
    assert (start.update, start.tasks, start.flips, start.skipped) == (0, {}, 0, None)
    assert start.coefficients == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3, "zero": 0.0})
    assert start.kept_components == pytest.approx(0.5)
    assert [one.update for one in updates] == [1, 2, 3]
    assert [one.iteration for one in updates] == [0, 1, 2]
    assert all(one.tasks.keys() == set(TASKS) for one in updates)
    assert updates[-1].coefficients["low"] < 0.3 < updates[-1].coefficients["high"]
    assert updates[0].flips == 0  # 0.06 after one update
    assert sum(one.flips for one in updates) > 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["learned"]["flips"] == sum(one.flips for one in updates)
    assert report["learned"]["kept_components"] == updates[-1].kept_components


def test_sequential_updates_visit_every_task_once_an_iteration(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="tint", iterations=4)
    updates = read_trace(tmp_path / "out" / "trace.jsonl", 12)[1:]
    assert [one.iteration for one in updates] == [number // 3 for number in range(12)]
    orders = [[task for one in updates if one.iteration == iteration for task in one.tasks] for iteration in range(4)]
    assert all(sorted(order) == list(TASKS) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_what_is_learnt_of_a_fixed_encoder_has_no_coefficients(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="surgery", iterations=1)
    assert all(one.coefficients == {} for one in read_trace(tmp_path / "out" / "trace.jsonl", 3))
