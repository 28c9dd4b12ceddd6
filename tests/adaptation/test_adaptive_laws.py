"""Laws that every adaptive method keeps: the bytes it writes, order and threads, interruption, what changes nothing."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, Assembled, adapt, assembled, clip_suite, contents, hearing, tiny
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.adaptation import running
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.objectives import TaskObjective
from taskmerge.adaptation.state import load_state
from taskmerge.adaptation.trace import StepRecord
from taskmerge.checkpoint.learned import read_learned
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.request import requested
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.specs.suite import Suite
from taskmerge.workflows.rebuild import rebuild
from vector_cases import agrees

LIKE_SYMERGE = ("tint", "tint_plus")
"""Methods with the parts of `symerge` but for the filter: a law that it keeps is slow news of these."""
METHODS = tuple(
    pytest.param(name, marks=pytest.mark.slow) if name in LIKE_SYMERGE else name for name in adaptive_methods()
)
LEARNING = tuple(name for name in METHODS if name != "heads")
"""Those that make updates: `heads` solves."""
PARTS = ("model.safetensors", "coefficients.safetensors", "masks.safetensors", "heads/", "blocks/", "adapters/")
Whole = Callable[[str], Path]
Ran = tuple[Assembled, Path]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Smaller than the example, whose laws are slow."""
    return clip_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def ran(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """A method's run at its end, and the folder that it wrote; each runs once."""
    place = tmp_path_factory.mktemp("whole")

    @cache
    def of(method: str) -> Ran:
        options: dict[str, Any] = {"iterations": 2, "keep_state": True, "goes_on": True}
        return assembled(suite, place / method, method=method, **options), place / method

    return of


@pytest.fixture(scope="module")
def whole(ran: Callable[[str], Ran]) -> Whole:
    """The folder alone."""
    return lambda method: ran(method)[1]


def updates_of(folder: Path) -> int:
    """How many updates a finished run made."""
    return len((folder / "trace.jsonl").read_text().splitlines()) - 1


# --- what is written -------------------------------------------------------------------------------------------


def formed_again(folder: Path, place: Path) -> None:
    """The model, byte for byte, from the folder and the experts."""
    rebuild(folder, output=place / "again.safetensors")
    assert (place / "again.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_formed_again_it_is_the_same_bytes(method: str, whole: Whole, tmp_path: Path) -> None:
    formed_again(whole(method), tmp_path)


@pytest.mark.parametrize("method", ["adarank", "heads", "symerge"])
def test_the_recipe_alone_says_the_same_merge(method: str, whole: Whole, tmp_path: Path) -> None:
    folder = whole(method)
    merge_requested(requested((), {"output": tmp_path / "recipe.safetensors"}, recipe=folder / "recipe.yaml"))
    assert agrees(tmp_path / "recipe.safetensors", folder / "model.safetensors", 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_on_one_thread_and_on_two_write_equal_files(
    method: str, suite: Suite, whole: Whole, tmp_path: Path
) -> None:
    adapt(suite, tmp_path / "two", method=method, iterations=2, threads=2, keep_state=True)
    assert contents(tmp_path / "two") == contents(whole(method))


@pytest.mark.parametrize(
    "method",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in adaptive_methods() if name != "adarank"), "adarank"],
)
def test_three_tasks_of_the_example(method: str, tmp_path: Path) -> None:
    """Formed again and on two threads: several shards a batch."""
    options: dict[str, Any] = {"method": method, "iterations": 2, "limit": 64, "batch_size": 20}
    adapt(tiny(), tmp_path / "one", **options)
    formed_again(tmp_path / "one", tmp_path)
    adapt(tiny(), tmp_path / "two", threads=2, **options)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tasks_changes_no_byte(method: str, whole: Whole, tmp_path: Path) -> None:
    """Joint updates add up in the order of names; which task comes when in sequential ones is a function of names.

    The state too, whose moments show the last bit of every gradient.
    """
    suite = clip_suite(tmp_path / "suite", tuple(reversed(TASKS)))
    adapt(suite, tmp_path / "out", method=method, iterations=2, keep_state=True)
    ours, others = contents(tmp_path / "out"), contents(whole(method))
    assert ours.keys() == others.keys()
    for name, found in ours.items():
        assert not name.startswith(PARTS) or found == others[name], name
    ours, others = (load_file(folder / "state" / "state.safetensors") for folder in (tmp_path / "out", whole(method)))
    assert same(ours, others)


@pytest.mark.parametrize("method", METHODS)
def test_the_parts_are_what_was_learnt(method: str, ran: Callable[[str], Ran]) -> None:
    """Coefficients, bits and what tasks have of their own are written as they are in the run at its end."""
    found, folder = ran(method)
    if found.run.on_weights.composed:
        learned, settled = read_learned(folder), found.run.on_weights.settled()
        assert learned.tasks == TASKS
        assert list(learned.coefficients) == found.names
        assert torch.equal(torch.stack(list(learned.coefficients.values())), settled.coefficients.detach())
        bits = {name: mask.flatten() for name, mask in learned.masks.items()}  # every task has all components here
        assert same(bits, {name: gates.detach() > 0 for name, gates in settled.gates.items()})
        assert bool(bits) == (method in ("adarank", "concrete"))
    for side in found.run.sides:
        for name, value in side.own.items():
            kind, _, tensor = name.partition("/")
            assert torch.equal(load_file(folder / f"{kind}s" / f"{side.name}.safetensors")[tensor], value.detach())


# --- a run that is interrupted ---------------------------------------------------------------------------------


class Interruption(Exception):
    """What a listener raises."""


def interrupted(suite: Suite, output: Path, update: int, patch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run that stops once it has told of an update."""

    def heard(record: StepRecord, total: int) -> None:
        if record.update == update:
            raise Interruption

    with hearing(patch, heard), pytest.raises(Interruption):
        adapt(suite, output, **options)


@pytest.mark.parametrize("method", LEARNING)
def test_a_resumed_run_is_the_uninterrupted_one(
    method: str, suite: Suite, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the state after the last update but one, which is saved before the last is told of."""
    monkeypatch.setattr(running, "SAVED_EVERY", -1.0)
    total, output, options = updates_of(whole(method)), tmp_path / "out", {"method": method, "iterations": 2}
    interrupted(suite, output, total, monkeypatch, **options)
    assert load_state(output / "state")[0].update == total - 1
    assert not (output / "folder.json").exists()
    adapt(suite, output, resume=True, keep_state=True, **options)
    assert contents(output) == contents(whole(method))


@pytest.mark.parametrize(("method", "options"), [
    pytest.param("symerge", {"layer": "last", "iterations": 1}, marks=pytest.mark.slow),
    pytest.param("adarank", {"mask_lr": 0.06, "with_": "tint", "iterations": 1}, marks=pytest.mark.slow),
    pytest.param("probsurgery", {"updates": "joint", "iterations": 3}, marks=pytest.mark.slow),
    ("adarank", {"mask_lr": 0.06, "stop": "agreement", "every": 2, "iterations": 3}),
])  # fmt: skip
def test_from_any_update(
    suite: Suite, method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SAVED_EVERY", -1.0)
    options = {"method": method, **options}
    adapt(suite, tmp_path / "whole", **options)
    for update in range(1, updates_of(tmp_path / "whole") + 1):
        output = tmp_path / f"{update}"
        interrupted(suite, output, update, monkeypatch, **options)
        adapt(suite, output, resume=True, **options)
        assert contents(output) == contents(tmp_path / "whole"), update


def test_interrupted_twice_and_between_two_saved_states(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told after the last saved state is cut from the trace and made again."""
    options = {"method": "adarank", "iterations": 5, "mask_lr": 0.06}
    adapt(suite, tmp_path / "whole", **options)
    output = tmp_path / "out"
    interrupted(suite, output, 4, monkeypatch, **options)
    assert load_state(output / "state")[0].update == 0
    assert updates_of(output) == 4
    interrupted(suite, output, 3, monkeypatch, resume=True, **options)
    adapt(suite, output, resume=True, keep_state=True, **options)
    ours = {name: value for name, value in contents(output).items() if not name.startswith("state/")}
    assert ours == contents(tmp_path / "whole")
    assert load_state(output / "state")[0].update == 5


# --- updates that change nothing -------------------------------------------------------------------------------


def everything(run: Adaptation) -> dict[str, Tensor]:
    """All that an update may change: values, moments, numbers of steps."""
    state = run.snapshot()
    kinds = {"value": state.values, "mean": state.means, "square": state.squares, "step": state.steps}
    return {f"{kind} {name}": tensor for kind, own in kinds.items() for name, tensor in own.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def nothing_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TaskObjective, "kept", lambda self, outputs, expert: torch.zeros(len(outputs), dtype=torch.bool))


def infinite_loss(patch: pytest.MonkeyPatch) -> None:
    loss = TaskObjective.loss
    patch.setattr(TaskObjective, "loss", lambda self, *given: loss(self, *given) * float("inf"))


def no_number(patch: pytest.MonkeyPatch) -> None:
    loss = TaskObjective.loss
    patch.setattr(TaskObjective, "loss", lambda self, *given: loss(self, *given) + float("nan"))


def infinite_gradient(patch: pytest.MonkeyPatch) -> None:
    """A finite loss with a slope that is none: √x at 0."""
    loss = TaskObjective.loss
    patch.setattr(TaskObjective, "loss", lambda self, *given: (loss(self, *given) * 0).sqrt())


WRONGS = {
    nothing_kept: "the filter keeps nothing", infinite_loss: "a loss is not finite", no_number: "a loss is not finite",
    infinite_gradient: "a gradient is not finite",
}  # fmt: skip


@pytest.mark.parametrize("method", LEARNING)
def test_an_update_that_goes_wrong_changes_nothing_and_is_counted(
    method: str, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = assembled(suite, tmp_path / "out", method=method, iterations=len(WRONGS) + 2).run
    updates = run.updates()
    assert next(updates).skipped is None
    before = everything(run)
    for number, (wrong, reason) in enumerate(WRONGS.items(), 1):
        with monkeypatch.context() as patch:
            wrong(patch)
            record = next(updates)
        assert record.skipped == reason
        assert record.flips == 0
        assert json.loads(record.line(), parse_constant=pytest.fail)["skipped"] == reason
        assert run.counts["skipped"] == number
        assert same(everything(run), before)
    assert next(updates).skipped is None
    assert not same(everything(run), before)


def test_a_task_of_which_nothing_is_kept_adds_nothing_to_the_others(suite: Suite, tmp_path: Path) -> None:
    """A joint update in which one task's filter keeps nothing is that of the other tasks."""
    grads = []
    for tasks in (TASKS, TASKS[:2]):
        run = assembled(suite, tmp_path / "out", method="tint", updates="joint", overwrite=True).run
        if tasks == TASKS:
            object.__setattr__(run.sides[2], "objective", Nothing("self"))
        else:
            run.sides = run.sides[:2]
        record = next(run.updates())
        grads.append({name: value.grad for name, value in run.optimised.values.items()})
        assert record.skipped is None
    assert record.tasks.keys() == set(TASKS[:2])
    for name, grad in grads[0].items():
        if "signs" in name:
            assert grad is None
        else:
            assert torch.equal(grad, grads[1][name])


class Nothing(TaskObjective):
    """An objective whose filter keeps nothing."""

    def kept(self, outputs: Tensor, expert: Any) -> Tensor:
        return torch.zeros(len(outputs), dtype=torch.bool)
