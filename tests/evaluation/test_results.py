"""Reports as JSON: the schema, the round trip, equal bytes, and what a broken document is told."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import report_cases
from report_cases import DENSE, TEXT, VISION, report
from taskmerge.errors import BadFile, BadNumber
from taskmerge.evaluation.results import dumps, from_json, read_report, schema, to_json
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.thresholds import against_thresholds, thresholds


def full() -> Report:
    """A report with something in every part."""
    found = report(TEXT, cross=True, corruptions=["jpeg"], compare=True, notes=("said ‘so’",), warnings=("careful",))
    checks = against_thresholds(found, thresholds(["average=0.9"], [], tasks=TEXT, checkpoints=[]))
    choice = {"encoder": "merged", "criterion": "agreement", "value": 0.5, "rank": 1, "average": 0.4}
    return replace(found, checks=checks, choices=(choice,))


def same(one: Report, other: Report) -> bool:
    """Equality of reports: arrays of bits by content."""
    plain = [replace(each, rows=tuple(replace(row, correct=None) for row in each.rows)) for each in (one, other)]
    bits = [[None if row.correct is None else row.correct.tolist() for row in each.rows] for each in (one, other)]
    return to_json(plain[0]) == to_json(plain[1]) and bits[0] == bits[1]


def broken(change: Any) -> dict[str, Any]:
    document = copy.deepcopy(json.loads(dumps(full())))
    change(document)
    return dict(document)


def test_the_schema_is_a_schema_that_leaves_nothing_open() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())

    def closed(part: Any) -> None:
        if isinstance(part, dict):
            if "properties" in part:
                assert part["additionalProperties"] is False
            for inner in part.values():
                closed(inner)

    closed(schema())


@pytest.mark.parametrize("tasks", [VISION, TEXT, DENSE])
def test_reports_are_valid(tasks: dict[str, str]) -> None:
    jsonschema.Draft202012Validator(schema()).validate(json.loads(dumps(report(tasks, compare=True))))


def test_what_was_written_is_read_again() -> None:
    before = full()
    after = from_json(json.loads(dumps(before)))
    assert same(before, after)
    assert dumps(after) == dumps(before)
    assert [one["encoder"] for one in after.comparisons] == [one["encoder"] for one in before.comparisons]


def test_equal_runs_give_equal_bytes_but_for_timing() -> None:
    first = report()
    report_cases.made.cache_clear()
    second = report(timing={"total": 2.5})
    assert dumps(first) != dumps(second)
    assert dumps(first).replace('"total": 1.5', '"total": 2.5') == dumps(second)
    document = json.loads(dumps(first))
    assert list(document) == sorted(document)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 60])
def test_bits_keep_every_item(n: int) -> None:
    before = report(n=n)
    after = from_json(to_json(before))
    for one, other in zip(before.rows, after.rows, strict=True):
        assert one.correct is not None
        assert other.correct is not None
        assert other.correct.dtype == np.bool_
        assert one.correct.tolist() == other.correct.tolist()


def test_the_average_has_the_interval_of_its_rows() -> None:
    document = to_json(report())
    experts = next(one for one in document["averages"] if one["checkpoint"] == "experts")
    own = [one for one in document["rows"] if one["checkpoint"] == f"expert:{one['task']}"]
    assert experts["tasks"] == 3
    assert experts["average"] == pytest.approx(sum(one["score"] for one in own) / 3)
    below = sum((one["score"] - one["low"]) ** 2 for one in own) ** 0.5 / 3
    assert experts["low"] == pytest.approx(experts["average"] - below)
    assert experts["normalised"] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.update(schema_version=2), "schema version 2, this taskmerge reads 1"),
        (lambda one: one.update(report="merge"), "no report of `taskmerge eval`"),
        (lambda one: one.pop("rows"), "'rows' is a required property"),
        (lambda one: one.update(extra=1), "`$` has a key too many"),
        (lambda one: one["rows"][3].update(score="high"), "`$.rows[3].score` is of another type"),
        (lambda one: one["rows"][2].pop("task"), "`$.rows[2]` lacks a key"),
        (lambda one: one["rows"][1]["correct"].update(n=9999), "rows[1]: `correct.bits` holds"),
        (lambda one: one["rows"][1]["correct"].update(bits="AAA"), "no base64"),
        (lambda one: one["averages"][0].update(average=None), "`$.averages[0].average`"),
    ],
)
def test_a_broken_document_is_told_what_and_where(change: Any, said: str) -> None:
    with pytest.raises(BadFile) as caught:
        from_json(broken(change), "old.json")
    assert said in caught.value.message
    assert "old.json" in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"report": "eval"', "\udcff", "[" * 100000, '{"report": NaN}'])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadFile, match=r"report\.json"):
        read_report(path)
    with pytest.raises(BadFile, match="no such file"):
        read_report(tmp_path / "none.json")
    with pytest.raises(BadFile):
        read_report(tmp_path)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    before = full()
    (tmp_path / "report.json").write_text(dumps(before), encoding="utf-8")
    assert same(read_report(tmp_path / "report.json"), before)


def test_not_a_number_is_never_written() -> None:
    found = report()
    spoilt = replace(found.rows[0], score=replace(found.rows[0].score, value=float("nan")))
    with pytest.raises(BadNumber):
        dumps(replace(found, rows=(spoilt, *found.rows[1:])))
