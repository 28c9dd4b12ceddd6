"""The plan of every adaptive method in words, and how what adaptations end with is written."""

from pathlib import Path

import pytest
from eval_cases import EXAMPLE

from taskmerge.cli.adapt_plan import plan_lines, updates
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.reports.adapt_tables import candidates_text, seed_average, seeds_text
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows.adapt_request import adapt_requested
from taskmerge.workflows.adapt_seeds import SeedRun, Seeds


@pytest.fixture(scope="module")
def tiny() -> Suite:
    return load_suite(EXAMPLE / "suite.yaml")


@pytest.mark.parametrize("name", adaptive_methods())
def test_every_method_has_a_plan(tiny: Suite, name: str) -> None:
    asked = adapt_requested(tiny, (), {"method": name})
    merged, learnt, horizon, items, *options = plan_lines(asked, "cuda")
    assert merged.startswith(f"{name}: 8 tasks (digits, letters, symbols, shapes, colours, counts, arrows, textures), ")
    assert learnt.startswith("learns ")
    assert f"objective {asked.parts.objective}" in learnt
    assert ("WITH LABELS" in learnt) == asked.parts.supervised
    assert ("no updates" in horizon) == (asked.parts.iterations == 0)
    assert items == f"split `adapt` of tiny; {'its labels are' if asked.parts.supervised else 'no label is'} read; " + (
        "seed 0; on cuda"
    )
    assert [line.split()[0] for line in options] == [own.flag for own in adaptive_methods()[name].settings.values()]


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"method": "adamerging"}, "--coefficient 0.3"),
        ({"method": "adamerging", "origin": "mean", "rank": 0.16}, "--coefficient 1"),
        ({"method": "cart_plus"}, "--coefficient 1"),
        ({"method": "adarank"}, "--rank full rank"),
        ({"method": "adarank", "origin": "mean"}, "--rank 0.08 of the full rank"),
        ({"method": "adarank", "origin": "mean"}, "--coefficient 1"),
        ({"method": "adarank", "coefficient": 0.5}, "--coefficient 0.5"),
    ],
)
def test_the_plan_holds_what_runs(tiny: Suite, keywords: dict[str, object], says: str) -> None:
    assert f"  {says}" in plan_lines(adapt_requested(tiny, (), keywords), "cpu")


def test_updates_are_counted_as_they_will_be_made(tiny: Suite) -> None:
    def count(**keywords: object) -> int | None:
        return updates(adapt_requested(tiny, (), {"iterations": 10, **keywords}))

    assert count(method="tint") == 80
    assert count(method="tint", updates="joint") == 10
    assert count(method="adarank") == 10
    assert count(method="tint", tasks=("digits",)) == 10
    assert updates(adapt_requested(tiny, (), {"method": "supervised_heads"})) is None


def scored(metric: str, *scores: float) -> dict[str, object]:
    rows = [{"task": f"task{place}", "metric": metric, "score": score} for place, score in enumerate(scores)]
    return {"scores": {"split": "test", "rows": rows, "average": sum(scores) / len(scores)}}


def test_seeds_are_a_table_of_means_and_deviations() -> None:
    reports = [scored("accuracy", 0.5, 0.7), scored("accuracy", 0.6, 0.7)]
    runs = tuple(SeedRun(seed, f"runs/seed-{seed}", own) for seed, own in enumerate(reports))
    found = Seeds("runs", runs)
    assert found.mean() == pytest.approx({"task0": 0.55, "task1": 0.7, "average": 0.625})
    assert found.spread() == pytest.approx({"task0": 0.005**0.5, "task1": 0.0, "average": 0.00125**0.5})
    title, head, _, *rows = seeds_text(found, width=80).splitlines()
    assert title == "split test: mean over 2 seeds ± standard deviation"
    assert head.split() == ["task", "adapted"]
    assert [row.split() for row in rows] == [
        ["task0", "55.0", "±7.1"], ["task1", "70.0", "±0.0"], ["average", "62.5", "±3.5"]
    ]  # fmt: skip
    assert seed_average(runs[0]) == "60.0"


def test_errors_are_in_their_own_unit_and_nothing_is_said_without_scores() -> None:
    run = SeedRun(0, "a", scored("angle", 23.456))
    assert seed_average(run) == "23.5"
    assert "23.5" in seeds_text(Seeds("a", (run,)))
    assert "±" not in seeds_text(Seeds("a", (run,))).splitlines()[-1], "one seed has no spread"
    none = SeedRun(0, "a", {"scores": None})
    assert (seed_average(none), seeds_text(Seeds("a", (none,)))) == ("", "")


def test_candidates_are_a_table_with_the_chosen_one_marked() -> None:
    tried = [{"name": "cart-plus", "agreement": 0.8, "score": 0.7}, {"name": "symerge", "agreement": 0.9, "score": 0.6}]
    text = candidates_text({"candidate": "symerge", "tried": tried, "regret": 0.1}, width=80)
    rows = [line.split() for line in text.splitlines()]
    assert ["cart-plus", "80.0", "70.0"] in rows
    assert ["symerge", "*", "90.0", "60.0"] in rows
    unscored = [{**one, "score": None} for one in tried]
    assert "average" not in candidates_text({"candidate": "symerge", "tried": unscored, "regret": None})


def test_long_lists_of_tasks_are_cut(tiny: Suite, tmp_path: Path) -> None:
    text = (EXAMPLE / "suite.yaml").read_text()
    head, tasks = text.split("tasks:\n")
    digits = tasks[: tasks.index("  letters:")]
    many = head + "tasks:\n" + "".join(digits.replace("  digits:", f"  digits{number}:") for number in range(20))
    path = tmp_path / "suite.yaml"
    path.write_text(many)
    first, *_ = plan_lines(adapt_requested(load_suite(path), (), {}), "cpu")
    assert "digits11 and 8 more), " in first
