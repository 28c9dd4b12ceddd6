"""A run beside its measures: the best state by agreement, what is told to whom, a disk that is full."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, adapt, assembled, clip_suite
from torch import Tensor

from taskmerge.adaptation import running
from taskmerge.adaptation.running import Following, Running
from taskmerge.adaptation.sides import training_places
from taskmerge.adaptation.trace import StepRecord
from taskmerge.errors import BadOutput
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite

STOP: dict[str, Any] = {"stop": "agreement", "held_out": 0.3}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("running"))


def carried_out(
    suite: Suite, folder: Path, told: list[float], patch: pytest.MonkeyPatch, *, every: int = 1, **options: Any
) -> tuple[Running, list[dict[str, Tensor]]]:
    """A run whose agreement is what is told, measure by measure; and the values after every update."""
    found = assembled(suite, folder, **{"method": "adamerging", "lr": 0.05, "iterations": 5, **STOP, **options})
    measures = iter(told)
    patch.setattr(running, "agreements", lambda *given: dict.fromkeys(TASKS, next(measures)))
    values: list[dict[str, Tensor]] = []

    def heard(record: StepRecord, total: int) -> None:
        values.append({name: value.detach().clone() for name, value in found.run.optimised.values.items()})

    held = {one.task.name: training_places(one, AdaptSpec(**STOP))[1] for one in found.opened.tasks}
    run = Running(found.run, folder, {}, Following(every, held), heard=heard)
    folder.mkdir(exist_ok=True)
    run.carry_out(resume=False)
    return run, values


@pytest.mark.parametrize(("told", "best"), [
    ([0.1, 0.2, 0.9, 0.3, 0.4, 0.5], 2), ([0.1, 0.9, 0.9, 0.9, 0.4, 0.5], 1), ([0.9, 0.2, 0.3, 0.3, 0.4, 0.5], 0),
    ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 5), ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0), ([-0.5, -0.2, -0.9, -0.3, -0.4, -0.5], 1),
])  # fmt: skip
def test_the_first_best_state_is_kept(
    suite: Suite, told: list[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equals the first; also where nothing agrees better than at the start, or values are correlated negatively."""
    run, values = carried_out(suite, tmp_path / "out", told, monkeypatch)
    chosen = run.chosen
    assert chosen is not None
    assert (chosen.update, chosen.agreement) == (best, pytest.approx(told[best]))
    for name, value in run.adaptation.optimised.values.items():
        assert torch.equal(value.detach(), values[best][name])
    assert [own.agreement for own in run.records] == pytest.approx(told)


def test_the_last_update_is_measured_whatever_is_due(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = carried_out(suite, tmp_path / "out", [0.1, 0.2, 0.3, 0.4], monkeypatch, every=2)
    assert [own.update for own in run.records if own.agreement is not None] == [0, 2, 4, 5]


def test_the_model_in_the_end_is_that_of_the_kept_state(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live weights too: heads may still be fitted on them."""
    run, values = carried_out(suite, tmp_path / "out", [0.9, 0.1, 0.1, 0.1, 0.1, 0.1], monkeypatch)
    live = {name: one.detach().clone() for name, one in run.adaptation.weights.slots.items()}
    run.adaptation.form()
    assert all(torch.equal(live[name], one) for name, one in run.adaptation.weights.slots.items())
    assert torch.equal(run.adaptation.on_weights.values["coefficients"].detach(), values[0]["coefficients"])


def test_agreement_is_measured_on_held_out_items_alone(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an adapted model the share of held-out items with the expert's class."""
    found = assembled(suite, tmp_path / "out", method="tint", iterations=1, **STOP)
    held = {one.task.name: training_places(one, AdaptSpec(**STOP))[1] for one in found.opened.tasks}
    run = Running(found.run, tmp_path / "out", {}, Following(1, held))
    (tmp_path / "out").mkdir(exist_ok=True)
    run.carry_out(resume=False)
    run.conclude()
    best = run.chosen
    assert best is not None
    for side in found.run.sides:
        with torch.no_grad():
            inputs = {name: whole[held[side.name]] for name, whole in side.items.inputs.items()}
            classes = side.head(side.module(inputs)).argmax(1)
        wanted = float((classes == side.teacher.outputs[held[side.name]].argmax(1)).double().mean())
        assert run.final[side.name] == wanted
        assert best.held_out is not None
        assert best.held_out[side.name] == wanted


def test_a_report_says_what_was_kept_and_what_the_horizon_would_have_given(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="tint", iterations=2, lr=0.1, every=2, **STOP)
    stopped = json.loads((tmp_path / "out" / "report.json").read_text())["stopped"]
    curve = stopped["curve"]
    assert [update for update, _ in curve] == [0, 2, 4, 6]
    assert stopped["agreement"] == max(agreement for _, agreement in curve)
    assert [stopped["update"], stopped["agreement"]] in curve
    assert stopped["at_horizon"] == curve[-1][1]
    assert stopped["final"] == pytest.approx(stopped["agreement"])


def test_every_update_is_told_with_how_many_there_are(suite: Suite, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = assembled(suite, tmp_path / "out", method="adamerging", iterations=3)
    (tmp_path / "out").mkdir(exist_ok=True)
    run = Running(found.run, tmp_path / "out", {}, heard=lambda record, total: told.append((record.update, total)))
    run.carry_out(resume=False)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert run.chosen is None


def test_what_is_watched_changes_nothing(suite: Suite, tmp_path: Path) -> None:
    """Curves with labels are told beside the updates; the result is the same."""
    options = {"method": "adamerging", "iterations": 3}
    adapt(suite, tmp_path / "plain", **options)
    adapt(suite, tmp_path / "watched", watch=2, **options)
    lines = [json.loads(line) for line in (tmp_path / "watched" / "trace.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["watched"] is not None] == [0, 2, 3]
    for name in ("model.safetensors", "coefficients.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "--resume"), (errno.EACCES, "-o")])
def test_a_state_that_cannot_be_written_is_a_bad_output(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """What was saved before is still there, and the run goes on from it."""
    save, calls = running.save_state, []

    def failing(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(number, "no room")
        save(*given)

    monkeypatch.setattr(running, "SAVED_EVERY", -1.0)
    options = {"method": "adamerging", "iterations": 3}
    with monkeypatch.context() as patch:
        patch.setattr(running, "save_state", failing)
        with pytest.raises(BadOutput) as error:
            adapt(suite, tmp_path / "out", **options)
    assert error.value.exit_code == 6
    assert says in str(error.value.hint)
    adapt(suite, tmp_path / "out", resume=True, **options)
    adapt(suite, tmp_path / "whole", **options)
    model = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model
