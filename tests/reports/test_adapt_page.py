"""The page of an adaptation: its answer, what it has seen, what was kept, and what it says where nothing was scored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from page_cases import eval_run
from report_cases import report
from taskmerge.reports.joined import join
from taskmerge.reports.kinds import sections_of
from taskmerge.reports.merge_sections import options_text
from taskmerge.reports.pages import page_of
from taskmerge.reports.runs import Run
from taskmerge.reports.sections import Facts, Prose, Section
from taskmerge.reports.standings import lead, standings
from taskmerge.reports.tables import Table
from taskmerge.workflows.adapt_schema import schema

TASKS = {"a": "accuracy", "b": "accuracy", "c": "accuracy"}


def document(*, scored: bool = True, **changes: Any) -> dict[str, Any]:
    """A report.json of an adaptation; its scores are 50 of 60 right on each task."""
    rows = [{"task": task, "metric": metric, "score": 50 / 60, "low": 0.72, "high": 0.91, "n": 60}
            for task, metric in TASKS.items()]  # fmt: skip
    found: dict[str, Any] = {
        "report": "adapt", "schema_version": 1, "version": "0.1.0", "suite": "small", "method": "adarank",
        "recipe": {"method": "adarank", "options": {"rank": 1.0}},
        "parts": {
            "origin": "base", "components": {"kind": "whole"}, "objective": "entropy", "on": "outputs",
            "filter": "none", "updates": "joint", "iterations": 12, "batch_size": 16, "learns": {}, "rates": {},
        },
        "protocol": {"split": "adapt", "labels": False, "updates": 12, "seed": 0, "words": "split `adapt`: 900 items"},
        "tasks": [{"name": task, "items": 300, "held_out": 20, "fingerprint": "0" * 64, "objective": "entropy"}
                  for task in TASKS],
        "experts": {}, "merging": {}, "processes": 1,
        "learned": {"updates": 12, "skipped": 0, "flips": 3, "coefficients": {}, "kept_components": 0.5},
        "solved_heads": {}, "stopped": None,
        "scores": {"split": "test", "rows": rows, "average": 50 / 60} if scored else None,
        "notes": ["a note"], "warnings": ["a warning"],
        "timing": {"seconds": 9.0, "peak_memory": 10**9, "updates": 5.0},
    }  # fmt: skip
    found |= changes
    jsonschema.Draft202012Validator(schema()).validate(found)
    return found


def adapted(folder: Path | None = None, **changes: Any) -> Run:
    return Run("mine", "adapt", document(**changes), folder)


def named(sections: list[Section], anchor: str) -> Section:
    (found,) = [section for section in sections if section.anchor == anchor]
    return found


def test_the_answer_says_the_score_and_what_was_seen() -> None:
    first = sections_of(adapted())[0]
    assert first.lead.startswith("“mine” was scored on the 3 tasks of small (split test): 83.3% on average (95%")
    assert "180 items" in first.lead
    assert "adarank, without a label: split `adapt`: 900 items." in first.lead
    assert "Base and experts were not evaluated with it" in first.lead
    assert Prose("a warning", "warning") in first.parts
    facts = [fact for part in first.parts if isinstance(part, Facts) for fact in part.facts]
    assert [fact.value for fact in facts] == ["83.3%", "adarank", "12", "9 s"]


def test_without_scores_it_says_how_to_get_them() -> None:
    sections = sections_of(adapted(scored=False))
    assert "was not scored" in sections[0].lead
    assert "`taskmerge eval experts base mine`" in sections[0].lead
    assert [section.anchor for section in sections] == ["answer", "protocol", "course"]


def test_a_choice_among_candidates_says_what_is_known_of_it() -> None:
    tried = [{"name": "heads", "agreement": 0.7, "score": 0.61}, {"name": "blocks", "agreement": 0.8, "score": 0.75}]
    chosen = {"candidate": "blocks", "tried": tried, "regret": 0.0}
    lead = sections_of(adapted(scored=False, chosen=chosen))[0].lead
    assert "Of 2 candidates blocks agreed best with the experts and was kept" in lead
    assert "is 75.0%: `taskmerge eval experts base mine` says more" in lead


def test_labels_are_told_wherever_they_were_used() -> None:
    protocol = {**document()["protocol"], "labels": True}
    assert "with labels" in sections_of(adapted(protocol=protocol))[0].lead


def test_what_was_kept_and_what_was_tried_are_told() -> None:
    stopped = {"update": 7, "agreement": 0.9, "at_horizon": 0.8, "final": 0.8, "tasks": {}, "curve": [[0, 0.8]]}
    section = named(sections_of(adapted(stopped=stopped)), "protocol")
    told = [part.text for part in section.parts if isinstance(part, Prose)]
    assert any("Update 7 was kept" in text and "90.0%" in text and "80.0%" in text for text in told)


@pytest.mark.parametrize("beside", [None, "folder"])
def test_a_report_without_its_folder_says_what_is_missing(beside: str | None, tmp_path: Path) -> None:
    section = named(sections_of(adapted(tmp_path if beside else None)), "course")
    assert "read without its folder" in section.lead


def test_it_is_judged_beside_an_evaluation_of_the_same_items() -> None:
    scored = report(TASKS, ["one"])
    (found,) = join([eval_run(scored, "x"), adapted()]).reports
    order = standings(found)
    own = next(one for one in order.models if one.name == "mine")
    assert own.value == pytest.approx(50 / 60)
    experts = [row.score.value for row in scored.rows if row.encoder == f"expert:{row.task}"]
    assert own.normalised == pytest.approx(sum(50 / 60 / value for value in experts) / 3)
    ahead = lead(found, "mine", "one")
    assert ahead is not None
    assert not ahead.paired
    page = page_of([eval_run(scored, "x"), adapted()])
    costs = named(list(page.sections), "costs")
    (table,) = [part for part in costs.parts if isinstance(part, Table)]
    assert table.title == "Adaptations"
    assert table.cells[0][1].text == "83.3%"
    other = join([eval_run(replace(scored, suite="other"), "x"), adapted()])
    assert len(other.reports) == 2


def test_adaptations_alone_are_compared_too() -> None:
    runs = [adapted(), replace(adapted(), name="other")]
    (found,) = join(runs).reports
    assert [own.name for own in standings(found).models] == ["mine", "other"]
    assert "“mine” is the best of 2 checkpoints" in page_of(runs).sections[0].lead


def test_options_are_one_line() -> None:
    assert options_text({"rank": 0.08, "mode": "x"}) == "rank 0.08, mode x"
    assert options_text({}) == "none"
