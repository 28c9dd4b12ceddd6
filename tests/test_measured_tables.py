"""`make tables`: rows are made once, a row that fails ends no table, and the page says what was measured and how."""

import json
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskmerge.errors import UsageError
from taskmerge.merging.request import requested
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows.adapt_request import adapt_requested

ROOT = Path(__file__).parents[1]
BENCHMARKS = str(ROOT / "benchmarks")
sys.path.insert(0, BENCHMARKS)

import table_pages  # noqa: E402  scripts are no package: their folder comes first
import table_results  # noqa: E402
import table_rows  # noqa: E402
import table_runs  # noqa: E402
import tables  # noqa: E402
from table_results import Asked, Failure, Result, Store  # noqa: E402
from table_rows import Row  # noqa: E402

sys.path.remove(BENCHMARKS)

EXPERTS = Row("experts", "given")
AVERAGE = Row("average", "static", {"method": "average"})
ADAPTED = Row("adamerging", "adaptive", {"method": "adamerging"}, iterations=1)
STRANGE = Row("strange", "adaptive", {"method": "adamerging", "rnak": 3}, iterations=1)
TASKS = ("digits", "arrows")


@pytest.fixture(scope="module")
def suite() -> Suite:
    whole = load_suite(ROOT / "examples" / "tiny" / "suite.yaml")
    return replace(whole, tasks=tuple(task for task in whole.tasks if task.name in TASKS))


@pytest.fixture(scope="module")
def made(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[tables.Plan, Store, list[str]]:
    """A table of two rows and one that fails, made once, and the rows that were run for it."""
    plan = tables.Plan((EXPERTS, AVERAGE, ADAPTED, STRANGE), "adapt", 1)
    store = Store(tmp_path_factory.mktemp("tables"), suite, "inputs", "code")
    ran: list[str] = []
    tables.carry_out("two", plan, store, counting(ran))
    return plan, store, ran


def counting(ran: list[str]) -> Callable[[Asked, Path], Result]:
    def make(asked: Asked, work: Path) -> Result:
        ran.append(asked.row.name)
        return table_runs.measured(asked, work)

    return make


def result(row: Row = AVERAGE, *scores: float, seed: int = 0, **more: Any) -> Result:
    """A result with these scores on the tasks."""
    rows = [scored(task, score) for task, score in zip(TASKS, scores, strict=False)]
    usual = {"row": row.name, "command": row.command, "seed": seed, "split": "adapt" if row.learns else None}
    machine = {"cores": 2, "device": "cpu", "system": "Linux x86_64"}
    return Result(**{
        **usual, "allowed": 300.0, "scores": rows, "versions": table_results.versions(), "machine": machine, **more
    })  # fmt: skip


def scored(task: str, score: float, **more: Any) -> dict[str, Any]:
    """One task's score as a result holds it."""
    return {
        "task": task, "metric": "accuracy", "score": score, "n": 100, "low": 0.0, "high": 1.0,
        "lower_is_better": False, **more,
    }  # fmt: skip


# --- making rows -----------------------------------------------------------------------------------------------


def test_every_row_is_made_once(made: tuple[tables.Plan, Store, list[str]]) -> None:
    plan, store, ran = made
    assert ran == ["experts", "average", "adamerging", "strange"]
    again: list[str] = []
    tables.carry_out("two", plan, store, counting(again))
    assert again == []


def test_a_result_holds_scores_cost_and_what_it_belongs_to(made: tuple[tables.Plan, Store, list[str]]) -> None:
    _, store, _ = made
    (file,) = (store.folder / "adamerging").glob("adapt-0-*.json")
    values = json.loads(file.read_text())
    assert [row["task"] for row in values["scores"]] == list(TASKS)
    assert values["average"] == pytest.approx(sum(row["score"] for row in values["scores"]) / 2)
    own = store.read(Asked(store.suite, EXPERTS))
    assert own is not None
    experts = {row["task"]: row["score"] for row in own.scores}
    relative = [row["score"] / experts[row["task"]] for row in values["scores"]]
    assert values["normalised"] == pytest.approx(sum(relative) / 2)
    assert values["updates"] == 1
    assert values["seconds"] > 0
    assert values["peak_memory"] > 0
    assert values["versions"].keys() == {"taskmerge", "torch"}
    assert (values["split"], values["seed"], values["error"]) == ("adapt", 0, None)
    assert not list(store.folder.glob(".run-*"))


def test_a_row_that_fails_is_its_message(made: tuple[tables.Plan, Store, list[str]]) -> None:
    plan, store, _ = made
    text = tables.page_of("two", plan, store)
    assert "| strange | failed (2) |" in text
    assert "- strange: exit 2 (UsageError): --rnak: unknown option `--rnak`" in text


def test_the_page_of_what_was_made(made: tuple[tables.Plan, Store, list[str]]) -> None:
    plan, store, _ = made
    text = tables.page_of("two", plan, store)
    lines = text.splitlines()
    assert "| row | average | normalised | digits | arrows | updates | seconds | MB | seeds | split |" in lines
    assert "| experts | 92.0 | 100.0 | 95.0 | 89.0 | – | – | – | – | – |" in lines
    assert any(line.startswith("| adamerging | ") and line.endswith(" | 1 | adapt |") for line in lines)
    assert "| adamerging | `adapt --method adamerging --iterations 1` |" in lines
    assert "1 iterations" in text
    assert str(ROOT) not in text
    assert "transductive" not in text


def test_an_interrupt_loses_the_run_under_way_only(suite: Suite, tmp_path: Path) -> None:
    plan, store = tables.Plan((EXPERTS, ADAPTED), "adapt", 3), Store(tmp_path, suite, "inputs", "code")
    ran: list[tuple[str, int]] = []

    def stopped(asked: Asked, work: Path) -> Result:
        if asked.seed == 1 and ran[-1] != ("adamerging", 1):
            ran.append(("adamerging", 1))
            raise KeyboardInterrupt
        ran.append((asked.row.name, asked.seed))
        return result(asked.row, 0.5, 0.5, seed=asked.seed)

    with pytest.raises(KeyboardInterrupt):
        tables.carry_out("two", plan, store, stopped)
    tables.carry_out("two", plan, store, stopped)
    assert ran == [("experts", 0), ("adamerging", 0), ("adamerging", 1), ("adamerging", 1), ("adamerging", 2)]


def test_a_failure_ends_its_row_and_one_of_the_experts_the_table(suite: Suite, tmp_path: Path) -> None:
    plan = tables.Plan((EXPERTS, ADAPTED, AVERAGE), "adapt", 3)
    for lost, expected in (("adamerging", ["experts", "adamerging", "average"]), ("experts", ["experts"])):
        ran: list[str] = []

        def failing(asked: Asked, work: Path, lost: str = lost, ran: list[str] = ran) -> Result:
            ran.append(asked.row.name)
            if asked.row.name == lost:
                return result(asked.row, error=Failure(exit_code=7, kind="BadNumber", message="NaN"))
            return result(asked.row, 0.5, 0.5)

        tables.carry_out("two", plan, Store(tmp_path / lost, suite, "inputs", "code"), failing)
        assert ran == expected


def test_a_defect_and_a_run_that_takes_too_long_are_results(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(asked: Asked, folder: Path) -> table_runs.Made:
        raise RuntimeError(f"nothing in {tmp_path}/folder/file")

    with monkeypatch.context() as patch:
        patch.setattr(table_runs, "MAKERS", {"static": broken})
        error = table_runs.measured(Asked(suite, AVERAGE), tmp_path).error
    assert error == Failure(exit_code=1, kind="RuntimeError", message="nothing in file")
    slow = table_runs.measured(Asked(suite, ADAPTED, seconds=0.0), tmp_path).error
    assert slow is not None
    assert (slow.exit_code, slow.message) == (8, "--seconds: 0 of 1 updates in 0 seconds")


@pytest.mark.slow
def test_a_process_of_its_own_finds_the_same(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    here, there = (make(Asked(suite, ADAPTED), tmp_path) for make in (table_runs.measured, table_runs.apart))
    assert there == replace(here, seconds=there.seconds, peak_memory=there.peak_memory)


def test_a_process_that_is_killed_is_a_failure_that_is_tried_again(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *_: object) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(table_runs, "ProcessPoolExecutor", Broken)
    store, asked = Store(tmp_path, suite, "inputs", "code"), Asked(suite, ADAPTED)
    error = store.write(asked, table_runs.apart(asked, tmp_path)).error
    assert error is not None
    assert error.exit_code == 5
    assert store.read(asked) is None


# --- what results belong to ------------------------------------------------------------------------------------


def test_a_run_belongs_to_its_row_seed_split_inputs_and_code(suite: Suite, tmp_path: Path) -> None:
    store, asked = Store(tmp_path, suite, "inputs", "code"), Asked(suite, ADAPTED)
    others = [
        replace(asked, seed=1), replace(asked, split="test"), replace(asked, row=ADAPTED.within(2)),
        replace(asked, suite=replace(suite, tasks=suite.tasks[:1])), replace(asked, row=replace(ADAPTED, keywords={})),
    ]  # fmt: skip
    keys = {store.key(one) for one in (asked, *others)}
    keys |= {replace(store, inputs="other").key(asked), replace(store, code="other").key(asked)}
    assert len(keys) == 8
    static = Asked(suite, AVERAGE)
    assert store.key(static) == store.key(replace(static, seed=1, split="test", seconds=1.0))


@pytest.mark.parametrize(("code", "kept"), [(1, False), (2, True), (4, True), (5, False), (6, False), (7, True)])
def test_failures_that_may_be_over_are_tried_again(code: int, kept: bool, suite: Suite, tmp_path: Path) -> None:
    store, asked = Store(tmp_path, suite, "inputs", "code"), Asked(suite, ADAPTED)
    store.write(asked, result(ADAPTED, error=Failure(exit_code=code, kind="Any", message="gone wrong")))
    assert (store.read(asked) is not None) is kept


def test_more_seconds_are_another_try(suite: Suite, tmp_path: Path) -> None:
    store, asked = Store(tmp_path, suite, "inputs", "code"), Asked(suite, ADAPTED, seconds=300.0)
    store.write(asked, result(ADAPTED, error=Failure(exit_code=8, kind="Missed", message="slow")))
    assert store.read(asked) is not None
    assert store.read(replace(asked, seconds=301.0)) is None


def test_inputs_are_the_bytes_of_every_file_that_the_suite_names(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "tiny" / "suite.yaml").read_text()
    for folder in ("one", "two"):
        (tmp_path / folder / "heads").mkdir(parents=True)
        (tmp_path / folder / "suite.yaml").write_text(text)
        for name in ("base.safetensors", "digits.safetensors", "heads/digits.safetensors"):
            (tmp_path / folder / name).write_text(name)
    one, two = (load_suite(tmp_path / folder / "suite.yaml") for folder in ("one", "two"))
    before = table_results.digest_of_inputs(one)
    assert before == table_results.digest_of_inputs(two)
    (tmp_path / "two" / "heads" / "digits.safetensors").write_text("another")
    assert table_results.digest_of_inputs(two) != before


def test_words_in_the_code_are_no_code() -> None:
    bare = table_results._bare
    assert bare('"""One."""\ndef f():\n    """Two."""\n    return 1  # three\n') == bare("def f():\n  return 1")
    assert bare("def f(): return 1") != bare("def f(): return 2")


def test_errors_count_the_other_way_round() -> None:
    experts = [scored("digits", 0.2, lower_is_better=True), scored("arrows", 0.5)]
    both = table_results.means([scored("digits", 0.4, lower_is_better=True), scored("arrows", 0.25)], experts)
    assert both == pytest.approx((0.325, 0.5))
    assert table_results.means([scored("digits", 0.4)], ()) == (0.4, None)


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("/home/one/tiny/suite.yaml: no `/data/x.npz`", "suite.yaml: no `x.npz`"),
        ("build/tables/x and a / b of https://host/a/b", "build/tables/x and a / b of https://host/a/b"),
    ],
)
def test_messages_lose_absolute_paths(text: str, without: str) -> None:
    assert table_results.without_paths(text) == without


# --- pages -----------------------------------------------------------------------------------------------------


def test_seeds_are_a_mean_and_their_spread() -> None:
    row = replace(ADAPTED, iterations=100)
    results = tuple(
        result(row, score, 0.5, seed=seed, average=(score + 0.5) / 2, normalised=score, updates=100,
               seconds=seconds, peak_memory=memory)
        for seed, score, seconds, memory in ((0, 0.5, 8.0, 500_000_000), (1, 0.7, 9.0, 600_000_000))
    )  # fmt: skip
    text = table_pages.page("two", TASKS, [table_pages.Section("test", (table_pages.Entry(row, results),))])
    assert "| adamerging | 55.0 ± 7.1 | 60.0 ± 14.1 | 60.0 | 50.0 | 100 | 8.5 | 600 | 2 | adapt |" in text
    assert "transductive" in text
    assert "2 cores, cpu, Linux x86_64" in text
    assert "100 iterations" in text


def test_choices_are_measured_by_labels_afterwards() -> None:
    row = Row("auto", "auto", iterations=200)
    kept = [("a", "a", 0.0), ("a", "b", 0.02)]
    results = tuple(
        result(row, 0.5, 0.5, seed=seed, average=0.5, agreement=0.8,
               choice={"kept": own, "best": best, "regret": regret, "gain": None})
        for seed, (own, best, regret) in enumerate(kept)
    )  # fmt: skip
    text = table_pages.page("two", TASKS, [table_pages.Section("adapt", (table_pages.Entry(row, results),))])
    assert "| auto | adapt | a (2) | a, b | 1.0 ± 1.4 | – | 80.0 ± 0.0 |" in text


# --- the list, and the command ---------------------------------------------------------------------------------


def test_rows_have_names_that_are_files_and_keywords_that_are_plain() -> None:
    names = [row.name for row in table_rows.ROWS]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.+-") for name in names)
    assert all(json.loads(json.dumps(dict(row.keywords))) == dict(row.keywords) for row in table_rows.ROWS)
    assert all(row.iterations is None for row in table_rows.ROWS if not row.learns)


@pytest.mark.parametrize("row", [row for row in table_rows.ROWS if row.kind != "given"], ids=lambda row: row.name)
def test_merge_and_adapt_accept_every_row(row: Row, suite: Suite) -> None:
    if row.kind == "static":
        assert requested((), row.keywords, suite=suite).spec.method == row.keywords["method"]
    elif row.kind == "adaptive":
        asked = adapt_requested(suite, (), {**row.keywords, "iterations": row.iterations})
        usual = adapt_requested(suite, (), row.keywords).parts.iterations
        assert asked.parts.iterations == (usual if row.iterations is None else row.iterations)


def test_the_command_prints_all_and_writes_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASKMERGE_EXPERTS", "")
    place = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "docs"), "--seeds", "1"]

    def make(asked: Asked, work: Path) -> Result:
        return result(asked.row, 0.5, 0.5, split=asked.split if asked.row.learns else None)

    tables.main([*place, "--rows", "cart-*"], make)
    assert "| cart-16 | 50.0 |" in capsys.readouterr().out
    assert not (tmp_path / "docs").exists()
    tables.main(place, make)
    page = (tmp_path / "docs" / "tiny.md").read_text()
    assert page == capsys.readouterr().out[:-1]
    assert page.count("\n| symerge-last") == 2 + 2
    tables.main([*place, "--adapt-split", "test"], make)
    assert (tmp_path / "docs" / "tiny.md").read_text().count("\n| symerge-last") == 2 + 2 + 2


def test_strangers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKMERGE_EXPERTS", "")
    with pytest.raises(UsageError, match="no suite `vision`; there are `tiny`"):
        tables.suites(["vision"])
    with pytest.raises(UsageError, match="no row is called `nobody`"):
        tables.rows("nobody", None)
