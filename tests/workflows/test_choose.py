"""Choice without labels: the order is the criterion's, labels only comment on it."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml

import taskmerge
from taskmerge.cli import evaluating
from taskmerge.cli.app import run
from taskmerge.errors import BadOutput, UsageError
from taskmerge.evaluation import label_free
from taskmerge.evaluation.label_free import Judged, judge
from taskmerge.evaluation.results import schema
from taskmerge.merging.request import requested
from taskmerge.models.backbones import build
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows import chosen_merge
from taskmerge.workflows.choose import choices, criterion_means, ordered, rank

TINY = Path(__file__).parents[2] / "examples" / "tiny"
TASKS = ("digits", "shapes")
choose = partial(taskmerge.merge, choose="agreement")


@pytest.fixture(scope="module")
def suite() -> Suite:
    whole = load_suite(TINY / "suite.yaml")
    return replace(whole, tasks=tuple(one for one in whole.tasks if one.name in TASKS))


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("merges") / "m.safetensors"
    experts = [TINY / f"{task}.safetensors" for task in TASKS]
    receipt = taskmerge.merge(
        experts, method="task_arithmetic", base=TINY / "base.safetensors", coefficient=(0.1, 0.5, 3.0), output=out
    )
    return list(receipt.paths)


def test_equal_values_are_ordered_by_name_and_lower_may_be_better() -> None:
    assert ordered({"b": 0.5, "a": 0.5, "c": 0.9}, "agreement") == ["c", "a", "b"]
    assert ordered({"b": 0.5, "a": 0.4}, "entropy") == ["a", "b"]


def test_a_criterion_is_averaged_over_the_tasks_it_can_judge() -> None:
    judged = [
        Judged("x", "one", 5, {"agreement": 0.5, "entropy": 1.0}),
        Judged("x", "two", 7, {"agreement": 0.7}),  # a regression has no entropy
    ]
    assert criterion_means(judged, "agreement") == {"x": pytest.approx(0.6)}
    assert criterion_means(judged, "entropy") == {"x": 1.0}
    assert [(one["criterion"], one["n"]) for one in choices(judged, None, "agreement")] == [
        ("agreement", 12), ("entropy", 5),
    ]  # fmt: skip


def test_agreement_is_the_share_of_the_experts_own_answers(suite: Suite, merges: list[str]) -> None:
    experts = {task: str(TINY / f"{task}.safetensors") for task in TASKS}
    told: list[tuple[int, int | None, str]] = []
    judged = judge(
        experts, suite=suite, limit=30, batch_size=16, device=torch.device("cpu"),
        progress=lambda *now: told.append(now),
    )  # fmt: skip
    assert told[-1] == (told[-1][1], told[-1][1], TASKS[-1])
    assert [done for done, _, _ in told] == sorted({done for done, _, _ in told})
    own = {one.task: one.values["agreement"] for one in judged if one.encoder == one.task}
    assert own == dict.fromkeys(TASKS, 1.0)
    other = [one.values["agreement"] for one in judged if one.encoder != one.task]
    assert all(value < 1 for value in other)


def with_a_dense_task(suite: Suite) -> Suite:
    """The suite and a task that no criterion judges, which lacks all that judging would need."""
    dense = replace(suite.tasks[0], name="rooms", kind="depth", metric="abs_error", expert=None, splits={})
    return replace(suite, tasks=(dense, *suite.tasks))


def test_tasks_that_no_criterion_judges_are_left_out_and_that_is_said_first(suite: Suite, merges: list[str]) -> None:
    told: list[str] = []
    options = {"limit": 10, "batch_size": 5, "device": torch.device("cpu")}
    judged = judge(
        merges, suite=with_a_dense_task(suite), note=told.append, **options,
        progress=lambda done, total, name: told.append(f"{done} of {total}"),
    )  # fmt: skip
    assert told[0] == "judged on tasks of classification and regression only: not on rooms"
    assert told[-1] == "80 of 80"
    assert judged == judge(merges, suite=suite, **options)
    report = rank(merges, suite=with_a_dense_task(suite), limit=10)
    assert report.notes[0] == told[0]
    assert len(report.choices) == 2 * len(merges)


def test_a_suite_without_a_task_to_judge_is_not_worked_on(suite: Suite, tmp_path: Path) -> None:
    dense = replace(suite, tasks=with_a_dense_task(suite).tasks[:1])
    notes: list[str] = []
    assert judge(["missing"], suite=dense, note=notes.append, batch_size=5, device=torch.device("cpu")) == ()
    assert notes == ["judged on tasks of classification and regression only: not on rooms"]
    judging = chosen_merge.Judging(by="agreement", suite=dense)
    with pytest.raises(UsageError, match="no task of this suite can be judged by agreement"):
        chosen_merge.carry_out_choice(requested([], {"rank": (1, 2)}), judging)


def test_memory_that_runs_out_halves_the_batch(
    suite: Suite, merges: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"suite": suite, "limit": 20, "batch_size": 16, "device": torch.device("cpu")}
    wanted, notes, waiting = judge(merges[:1], **options), list[str](), [True]

    def exhausted(*_: object) -> None:
        if waiting:
            waiting.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    def built(*given: Any, **options: Any) -> Any:
        backbone = build(*given, **options)
        backbone.module.register_forward_pre_hook(exhausted)
        return backbone

    monkeypatch.setattr(label_free, "build", built)
    found = judge(merges[:1], note=notes.append, **options)
    assert notes == ["the device's memory ran out: batches of 8 from there on"]
    assert [one.values for one in found] == [pytest.approx(one.values, abs=1e-6) for one in wanted]


def test_rank_orders_by_the_criterion_and_says_what_labels_make_of_it(suite: Suite, merges: list[str]) -> None:
    report = rank(merges, suite=suite, limit=60)
    first = [one for one in report.choices if one["criterion"] == "agreement"]
    assert [one["rank"] for one in first] == [1, 2, 3]
    assert first == sorted(first, key=lambda one: -one["value"])
    scores = {one.encoder: one.normalised for one in report.averages}
    assert all(one["normalised"] == scores[one["encoder"]] for one in first)
    assert any("best by labels" in note for note in report.notes)
    assert any("agree with the labels" in note for note in report.notes)


def test_labels_have_no_part_in_the_order(suite: Suite, merges: list[str]) -> None:
    blind = replace(
        suite,
        tasks=tuple(
            replace(one, splits={name: replace(split, y=None) for name, split in one.splits.items()})
            for one in suite.tasks
        ),
    )
    seen, unseen = (rank(merges, suite=one, limit=40) for one in (suite, blind))
    assert [(one["encoder"], one["value"]) for one in seen.choices] == [
        (one["encoder"], one["value"]) for one in unseen.choices
    ]
    assert unseen.rows == ()
    assert all(one["normalised"] is None for one in unseen.choices)


def test_unknown_criteria_and_splits_are_named(suite: Suite, merges: list[str]) -> None:
    with pytest.raises(UsageError, match="agreement"):
        rank(merges, suite=suite, by="agreemnt")
    with pytest.raises(UsageError, match="no split `unlabelled`"):
        rank(merges, suite=suite, adapt_split="unlabelled")
    with pytest.raises(UsageError, match="no checkpoint to rank"):
        rank(["experts"], suite=suite)
    with pytest.raises(UsageError) as misspelt:
        rank(merges, suite=suite, split="adpat")
    assert (misspelt.value.where, misspelt.value.hint) == ("--split", "did you mean `adapt`?")
    with pytest.raises(UsageError, match="unknown task `digit`"):
        rank(merges, suite=suite, tasks="digit", split="adapt")


def test_a_suite_without_the_default_split_is_ordered_all_the_same(suite: Suite, merges: list[str]) -> None:
    tasks = tuple(replace(one, splits={"adapt": one.splits["adapt"]}) for one in suite.tasks)
    report = rank(merges, suite=replace(suite, tasks=tasks), limit=5)
    assert len(report.choices) == 2 * len(merges)
    assert "split `test` is not labelled everywhere: nothing is scored" in report.notes


def test_trust_is_in_clean_items_and_judging_takes_time_too(suite: Suite, merges: list[str]) -> None:
    pytest.importorskip("imagecorruptions")
    clean, both = (rank(merges[:1], suite=suite, limit=20, corrupt=also) for also in ((), "contrast"))
    (plain,), (said,) = ([note for note in one.notes if "agree with the labels" in note] for one in (clean, both))
    assert said == plain
    assert [said.count(f"{task} ") for task in TASKS] == [1, 1]
    timing = clean.timing
    parts = sum(timing[phase] for phase in ("judging", "reading", "filling", "encoding", "scoring"))
    assert 0 < timing["judging"] < parts <= timing["total"]


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    """The two tasks as a suite file of their own."""
    text = yaml.safe_load((TINY / "suite.yaml").read_text())
    text["tasks"] = {name: text["tasks"][name] for name in TASKS}
    for name in ("base",):
        text[name] = str(TINY / text[name])
    text["backbone"]["model"] = str(TINY / text["backbone"]["model"])
    text["backbone"]["tokenizer"]["bpe"] = str(TINY / text["backbone"]["tokenizer"]["bpe"])
    for task in text["tasks"].values():
        task |= {key: str(TINY / task[key]) for key in ("expert", "head")}
        for split in task["data"].values():
            split["file"] = str(TINY / split["file"])
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_the_chosen_merge_is_the_best_point_and_nothing_else_is_left(suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    final = out / "merged.safetensors"
    grid = {"method": "cart", "rank": (0.04, 0.5), "coefficient": (0.5, 1.5)}
    found = choose(suite=suite_file, output=final, limit=40, **grid)
    assert [path.name for path in out.iterdir()] == ["merged.safetensors"]
    best = next(one for one in found.choices if one["rank"] == 1 and one["criterion"] == "agreement")
    plain = taskmerge.merge(suite=suite_file, output=tmp_path / "grid" / "g.safetensors", **grid)
    twin = next(path for path in plain.paths if Path(path).stem.removeprefix("g-") == best["encoder"])
    assert final.read_bytes() == Path(twin).read_bytes()
    with pytest.raises(BadOutput):
        choose(suite=suite_file, output=final, limit=40, **grid)


def test_an_output_that_is_an_input_is_refused_before_anything_is_judged(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_merge, "judge", lambda *_, **__: pytest.fail("judged"))
    for task in TASKS:
        (tmp_path / task).mkdir()
        shutil.copy(TINY / f"{task}.safetensors", tmp_path / task / "model.safetensors")
    before = (tmp_path / "digits" / "model.safetensors").read_bytes()
    for output in ("digits", "digits/model.safetensors"):
        with pytest.raises(UsageError, match="would be lost"):
            choose(
                [tmp_path / task for task in TASKS], suite=suite_file, output=tmp_path / output, rank=(0.04, 0.5),
                overwrite=True,
            )  # fmt: skip
    assert (tmp_path / "digits" / "model.safetensors").read_bytes() == before


def test_there_must_be_something_to_choose_from(suite_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to choose from"):
        choose(suite=suite_file, output=tmp_path / "x.safetensors", rank=0.04)
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_prints_the_path_and_tells_the_order(
    suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "best.safetensors"
    words = ["merge", "--suite", str(suite_file), "--rank", "0.04,0.5", "--limit", "20", "-o", str(out)]
    assert run([*words, "--choose", "agreement"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "choice without labels" in said.err
    assert run([*words, "--choose", "agreemnt"]) == 2
    assert "did you mean `agreement`" in capsys.readouterr().err
    assert run([*words, "--choose", "agreement"]) == 6
    assert [path.name for path in out.parent.iterdir()] == ["best.safetensors"]


def test_eval_ranks_and_its_report_is_valid(
    suite_file: Path, merges: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *merges, "--suite", str(suite_file), "--rank-by", "kappa", "--limit", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, schema())
    assert {one["criterion"] for one in report["choices"]} == {"kappa", "entropy"}


def test_eval_tells_once_and_first_which_tasks_nothing_judges(
    suite: Suite, merges: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluating, "load_suite", lambda _: with_a_dense_task(suite))
    words = ["eval", *merges, "--suite", str(TINY / "suite.yaml"), "--rank-by", "agreement", "--limit", "10", "--json"]
    assert run(words) == 0
    said = capsys.readouterr()
    note = "judged on tasks of classification and regression only: not on rooms"
    assert said.err.startswith(f"note: {note}\n")
    assert said.err.count(note) == 1
    assert json.loads(said.out)["notes"][0] == note
