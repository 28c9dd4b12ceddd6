"""`--method auto`: what it would try, what it keeps, and how it goes on after it was stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from adaptation_cases import clip_suite, contents
from safetensors.torch import load_file

from taskmerge.adaptation import running as runs
from taskmerge.adaptation.trace import StepRecord
from taskmerge.errors import BadFile, BadOutput, TaskmergeError, UsageError
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapted import AdaptRunning
from taskmerge.workflows.auto import adapt_auto, auto_started, candidate_folder, candidate_requests
from taskmerge.workflows.auto_plan import plan_auto
from taskmerge.workflows.rebuild import rebuild

QUICK: Mapping[str, Mapping[str, Any]] = {
    "fitted": {"method": "heads", "init": "average"},
    "tinted": {"method": "tint"},
    "learnt": {"method": "adamerging"},
}
COMMON: dict[str, Any] = {"budget": 6, "batch_size": 4, "held_out": 0.3}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("auto"))


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SAVED_EVERY", -1.0)


def auto(suite: Suite, output: Path, stop: tuple[str, int] | None = None, **more: Any) -> Any:
    """A run; or one that Ctrl-C ends when a candidate has made so many updates."""
    trying: list[str] = []

    def doing(activity: str) -> None:
        trying.extend([activity.removeprefix("trying ")] if activity.startswith("trying ") else [])

    def heard(record: StepRecord, total: int) -> None:
        if stop is not None and (trying[-1], record.update) == stop:
            raise KeyboardInterrupt

    given = {name: more.pop(name) for name in ("overwrite", "resume") if name in more}
    running = AdaptRunning(output=output, threads=1, scores=False, doing=doing, heard=heard, **given)
    receipt = adapt_auto(suite, running, **{**COMMON, "candidates": QUICK, **more})
    return receipt, trying


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture(scope="module")
def whole(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole") / "best"
    auto(suite, place)
    return place


def test_the_best_stays_alone(whole: Path) -> None:
    assert hidden(whole.parent) == []
    assert (whole / "folder.json").exists()


def test_the_recipe_holds_where_the_folder_is(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in it are relative to the place, not to where the candidate was tried."""
    auto(suite, tmp_path / "deep" / "best", candidates={"learnt": {"method": "adamerging"}})
    monkeypatch.chdir(tmp_path)
    rebuild(tmp_path / "deep" / "best", output=tmp_path / "again.safetensors")
    assert load_file(tmp_path / "again.safetensors").keys()


@pytest.mark.parametrize("stop", [("tinted", 2), ("learnt", 1), ("learnt", 0)])
def test_a_stopped_choice_goes_on_with_what_is_not_finished(
    suite: Suite, whole: Path, tmp_path: Path, stop: tuple[str, int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        auto(suite, tmp_path / "best", stop)
    assert auto_started(tmp_path / "best", QUICK)
    assert not (tmp_path / "best").exists()
    with pytest.raises(BadOutput, match="unfinished run") as error:
        auto(suite, tmp_path / "best")
    assert error.value.exit_code == 6
    _, trying = auto(suite, tmp_path / "best", resume=True)
    finished = list(QUICK).index(stop[0])
    assert trying == list(QUICK)[finished:]
    assert contents(tmp_path / "best") == contents(whole)
    assert hidden(tmp_path) == []


def test_a_choice_is_not_resumed_with_other_options(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        auto(suite, tmp_path / "best", ("learnt", 1))
    for more in ({"seed": 1}, {"budget": 9}, {"limit": 10}):
        with pytest.raises(UsageError, match="another") as error:
            auto(suite, tmp_path / "best", resume=True, **more)
        assert error.value.exit_code == 2
        assert auto_started(tmp_path / "best", QUICK), "what is there stays"
    auto(suite, tmp_path / "best", overwrite=True, limit=10)
    assert hidden(tmp_path) == []


def test_nothing_is_resumed_where_nothing_was_begun(suite: Suite, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no unfinished run"):
        auto(suite, tmp_path / "best", resume=True)
    with pytest.raises(BadOutput, match="exists already"):
        auto(suite, whole)
    with pytest.raises(KeyboardInterrupt):
        auto(suite, tmp_path / "best", ("tinted", 0), candidates={"tinted": QUICK["tinted"]})
    assert list(tmp_path.iterdir()) == [], "nothing was learnt, so nothing is kept"


def test_what_a_kill_left_before_anything_was_learnt_is_in_nobodys_way(suite: Suite, tmp_path: Path) -> None:
    candidate_folder(tmp_path / "best", "tinted").mkdir()
    (candidate_folder(tmp_path / "best", "tinted") / "trace.jsonl").write_text("{")
    auto(suite, tmp_path / "best")
    assert hidden(tmp_path) == []


def test_a_plan_has_every_candidate_its_iterations_and_its_time(suite: Suite, tmp_path: Path) -> None:
    candidates = {**QUICK, "no matrix": {"method": "cart_plus", "include": ("visual.ln_pre.*",)}}
    asked = candidate_requests(suite, (), 6, 0, candidates, {"batch_size": 4})
    plan = plan_auto(asked, AdaptRunning(output=tmp_path / "best", threads=1), 6)
    found = {one.name: one for one in plan.candidates}
    assert [one.iterations for one in plan.candidates] == [0, 2, 2, 2]
    assert [found[name].updates for name in QUICK] == [0, 6, 2]
    assert all((found[name].seconds or 0) > 0 for name in QUICK)
    assert found["no matrix"].left_out
    assert plan.seconds == pytest.approx(sum(found[name].seconds or 0 for name in QUICK))
    assert list(tmp_path.iterdir()) == []


def test_other_experts_are_another_choice(suite: Suite, tmp_path: Path) -> None:
    own = clip_suite(tmp_path / "suite")
    with pytest.raises(KeyboardInterrupt):
        auto(own, tmp_path / "best", ("learnt", 0))
    expert = tmp_path / "suite" / "cars.safetensors"
    expert.write_bytes((tmp_path / "suite" / "digits.safetensors").read_bytes())
    with pytest.raises(TaskmergeError, match="experts") as error:
        auto(own, tmp_path / "best", resume=True)
    assert error.value.exit_code == 2
