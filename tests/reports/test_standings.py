"""Which model is best and how sure that is: against the naive computation, and joined from several runs."""

from dataclasses import replace

import numpy as np
import pytest

from page_cases import eval_run
from report_cases import DENSE, report
from taskmerge.evaluation.intervals import paired
from taskmerge.evaluation.scores import Report
from taskmerge.reports.comparison import comparison
from taskmerge.reports.eval_sections import answer
from taskmerge.reports.joined import join
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Facts
from taskmerge.reports.standings import lead, standings
from taskmerge.reports.tables import Table

SHARES = {"a": "accuracy", "b": "accuracy", "c": "accuracy"}


def rows(found: Report, name: str) -> dict[str, np.ndarray]:
    return {row.task: row.correct for row in found.rows if row.encoder == name and row.correct is not None}


def test_the_best_comes_first_then_what_it_is_compared_with() -> None:
    found = report(SHARES, ["one", "two", "three"])
    order = standings(found)
    means = {own.encoder: own.average for own in found.averages}
    assert [own.name for own in order.models] == sorted(("one", "two", "three"), key=lambda name: -means[name])
    assert {own.name for own in order.references} == {"base", "experts"}
    assert order.percent
    assert not order.lower_is_better
    best = order.models[0]
    assert best.value == means[best.name]
    assert (best.tasks, best.n) == (3, 180)
    assert best.low < means[best.name] < best.high


def test_of_errors_the_smallest_is_best_and_of_mixed_units_the_normalised_decides() -> None:
    errors = standings(report({"a": "abs_error", "b": "abs_error"}, ["one", "two"]))
    assert errors.lower_is_better
    values = [own.value for own in errors.models]
    assert values == sorted(values, key=lambda value: value or 0.0)
    mixed = standings(report(DENSE, ["one", "two"]))
    assert all(own.value is None for own in mixed.models)
    shares = [own.normalised or 0.0 for own in mixed.models]
    assert shares == sorted(shares, reverse=True)


def test_a_lead_is_the_mean_of_paired_differences() -> None:
    found = report(SHARES, ["one", "two"])
    ahead = lead(found, "one", "two")
    assert ahead is not None
    pairs = [paired(first, rows(found, "two")[task]) for task, first in rows(found, "one").items()]
    value = sum(own[0] for own in pairs) / 3
    below = sum((own[0] - own[1]) ** 2 for own in pairs) ** 0.5 / 3
    above = sum((own[2] - own[0]) ** 2 for own in pairs) ** 0.5 / 3
    assert ahead.paired
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((value, value - below, value + above))
    assert ahead.settled == (value - below > 0 or value + above < 0)


def test_without_single_items_the_interval_is_of_independent_ones_and_wider() -> None:
    found = report(SHARES, ["one", "two"])
    bare = replace(found, rows=tuple(replace(row, correct=None) for row in found.rows))
    known, unknown = lead(found, "one", "two"), lead(bare, "one", "two")
    assert known is not None
    assert unknown is not None
    assert not unknown.paired
    assert unknown.value == pytest.approx(known.value)
    both = [[row.score for row in found.rows if row.encoder == name] for name in ("one", "two")]
    below = sum((a.value - a.low) ** 2 + (b.high - b.value) ** 2 for a, b in zip(*both, strict=True)) ** 0.5 / 3
    assert unknown.value - unknown.low == pytest.approx(below)


def test_the_answer_names_the_best_its_score_the_experts_the_base_and_how_sure() -> None:
    found = report(SHARES, ["one", "two"])
    section = answer(found)
    order = standings(found)
    best, second = order.models
    assert f"“{best.name}” is the best of 2 checkpoints on the 3 tasks of small (split test)" in section.lead
    assert f"{100 * (best.value or 0):.1f}% on average (95% interval" in section.lead
    assert "180 items" in section.lead
    assert "of the tasks' own experts" in section.lead
    assert "points above the base" in section.lead
    ahead = lead(found, best.name, second.name)
    assert ahead is not None
    assert ("not told apart" in section.lead) == (not ahead.settled)
    assert isinstance(section.parts[0], Facts)


def test_an_evaluation_of_references_alone_has_an_answer() -> None:
    found = report(SHARES, [])
    assert "was scored on the 3 tasks" in answer(found).lead
    assert answer(replace(found, rows=(), averages=())).lead == "Nothing was scored on data as it is."


# --- several runs ----------------------------------------------------------------------------------------------


def test_runs_of_the_same_items_are_joined_and_judged_together() -> None:
    both = report(SHARES, ["one", "two"])
    alone = [replace(both, rows=tuple(row for row in both.rows if row.encoder != other),
                     checkpoints=tuple(own for own in both.checkpoints if own["name"] != other),
                     averages=tuple(own for own in both.averages if own.encoder != other))
             for other in ("two", "one")]  # fmt: skip
    joined = join([eval_run(one, f"run {place}") for place, one in enumerate(alone)])
    (found,) = joined.reports
    assert joined.origins["one"] == "run 0"
    assert joined.origins["two"] == "run 1"
    wanted, own = standings(both), standings(found)
    assert own.models == wanted.models
    assert {one.name: one for one in own.references} == {one.name: one for one in wanted.references}
    assert lead(found, "one", "two") == lead(both, "one", "two")


def test_checkpoints_of_one_name_are_told_apart_by_their_runs() -> None:
    (found,) = join([eval_run(report(SHARES, ["one"]), name) for name in ("x", "y")]).reports
    assert [own.name for own in standings(found).models] == ["one", "y: one"]


def test_other_items_tasks_and_splits_are_kept_apart() -> None:
    first = report(SHARES, ["one"])
    others = (
        report(SHARES, ["one"], seed=1),  # other items: another fingerprint
        report(SHARES, ["one"], n=40),
        report({"a": "accuracy"}, ["one"]),
        replace(first, suite="other"),
        replace(first, split="adapt"),
    )
    for other in others:
        reports = join([eval_run(first, "x"), eval_run(other, "y")]).reports
        assert len(reports) == 2
        sections = comparison([eval_run(first, "x"), eval_run(other, "y")])
        apart = [section for section in sections if section.title.startswith("Apart")]
        assert len(apart) == 1
        assert "not compared" in apart[0].lead
        assert "stand apart below" in sections[0].lead


def test_a_merge_gets_the_score_of_the_checkpoint_with_its_recipe() -> None:
    recipe = {"taskmerge": 1, "method": "cart", "options": {"rank": 0.08}}
    scored = report(SHARES, ["one", "two"])
    scored = replace(scored, checkpoints=tuple(
        {**own, "recipe": recipe} if own["name"] == "two" else own for own in scored.checkpoints))  # fmt: skip
    receipt = {
        "outputs": [{"path": "two.safetensors", "files": ["two.safetensors"], "bytes": 9, "options": {"rank": rank}}
                    for rank in (0.08, 0.16)],
        "provenance": {"kind": "merge", "version": "1", "recipe": recipe, "tasks": [{"name": "a"}]},
        "notes": [], "warnings": [], "bytes_read": 1, "bytes_written": 9, "predicted_memory": 1, "peak_memory": 1,
        "seconds": 1.0,
    }  # fmt: skip
    sections = comparison([eval_run(scored, "x"), Run("merged", "merge", receipt)])
    (table,) = [part for part in sections[-1].parts if isinstance(part, Table)]
    own = next(one for one in standings(scored).models if one.name == "two")
    assert [row[table.columns.index("mean score")].text for row in table.cells] == [
        f"{100 * (own.value or 0):.1f}%", "–",
    ]  # fmt: skip


def test_runs_without_scores_say_so() -> None:
    receipt = {
        "outputs": [{"path": "x", "files": ["x"], "bytes": 9, "options": {}}], "notes": [], "warnings": [],
        "provenance": {"kind": "merge", "version": "1", "recipe": {"method": "average"}, "tasks": [{"name": "a"}]},
        "bytes_read": 1, "bytes_written": 9, "predicted_memory": 1, "peak_memory": 1, "seconds": 1.0,
    }  # fmt: skip
    first, *_ = comparison([Run("a", "merge", receipt), Run("b", "merge", receipt)])
    assert "None of these runs holds scores" in first.lead
