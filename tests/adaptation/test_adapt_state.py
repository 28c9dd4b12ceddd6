"""Saved states: a round trip gives every bit back, and what is no state, or of another run, is refused by its code."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import adapt, assembled, clip_suite, hearing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from taskmerge.adaptation import running, trace
from taskmerge.adaptation.state import AdaptState, Optimised, load_state, save_state
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.specs.suite import Suite

ABOUT = {"recipe": {"method": "x", "tasks": ["a", "b"]}, "experts": {"a": "1"}}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("states"))


def optimised(seed: int = 0) -> Optimised:
    """Two learnables of one group and one that is fixed; two steps made, one of them without the second."""
    generator = torch.Generator().manual_seed(seed)
    values = [nn.Parameter(torch.randn(3, generator=generator)) for _ in range(3)]
    values[2].requires_grad_(False)
    made = Optimised({"coefficients": {"x": values[0], "z": values[2]}, "heads": {"tasks/a/head/y": values[1]}},
                     {"coefficients": 0.1, "heads": 0.01})  # fmt: skip
    for step in range(2):
        made.clear()
        values[0].grad = torch.ones(3) * (step + 1)
        values[1].grad = torch.ones(3) if step else None
        made.step()
    return made


def same(one: AdaptState, other: AdaptState) -> bool:
    pairs = [
        (one.values, other.values), (one.means, other.means), (one.squares, other.squares), (one.steps, other.steps),
    ]  # fmt: skip
    return (one.update, dict(one.counts)) == (other.update, dict(other.counts)) and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in pairs
    )


# --- round trips -----------------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = optimised().snapshot(7, {"skipped": 2, "flips": 5})
    save_state(state, tmp_path / "state", ABOUT)
    found, about = load_state(tmp_path / "state")
    assert same(found, state)
    assert about == ABOUT
    save_state(state, tmp_path / "again", ABOUT)
    first, again = ((tmp_path / name).rglob("*.safetensors") for name in ("state", "again"))
    assert next(first).read_bytes() == next(again).read_bytes()


def test_a_state_of_float64_and_of_nothing(tmp_path: Path) -> None:
    for state in (AdaptState(0, {}), AdaptState(3, {"x": torch.ones(2, dtype=torch.float64)}, counts={"flips": 1})):
        save_state(state, tmp_path / "state", {})
        assert same(load_state(tmp_path / "state")[0], state)


def test_a_snapshot_is_a_copy() -> None:
    made = optimised()
    state = made.snapshot(2, {})
    before = {name: value.clone() for name, value in state.values.items()}
    made.values["x"].grad = torch.ones(3)
    made.step()
    assert all(torch.equal(state.values[name], value) for name, value in before.items())


def test_steps_after_a_restore_are_those_that_would_have_followed() -> None:
    """Moments and numbers of steps count, also that one value has moved less often than another."""
    one, other = optimised(), optimised(seed=1)
    other.restore(one.snapshot(2, {}))
    for made in (one, other):
        made.clear()
        for name in ("x", "tasks/a/head/y"):
            made.values[name].grad = torch.full((3,), 0.3)
        made.step()
    assert same(one.snapshot(3, {}), other.snapshot(3, {}))
    assert one.snapshot(3, {}).steps["x"] == 3
    assert one.snapshot(3, {}).steps["tasks/a/head/y"] == 2
    assert "z" not in one.snapshot(3, {}).means


def test_a_restore_to_the_start_forgets_what_moved_since() -> None:
    one, other = optimised(), optimised()
    start = AdaptState(0, one.snapshot(0, {}).values)
    for made in (one, other):
        made.restore(start)
    other.clear()
    for name in ("x", "tasks/a/head/y"):
        other.values[name].grad = torch.ones(3)
    other.step()
    other.restore(start)
    for made in (one, other):
        made.clear()
        made.values["x"].grad = torch.full((3,), 0.3)
        made.step()
    assert same(one.snapshot(1, {}), other.snapshot(1, {}))
    assert one.snapshot(1, {}).steps["x"] == 1


def test_a_value_without_a_gradient_does_not_move() -> None:
    """As torch's Adam: no step, no decay of its moments."""
    made = optimised()
    before = made.snapshot(0, {})
    made.clear()
    made.values["x"].grad = torch.ones(3)
    made.step()
    after = made.snapshot(1, {})
    for kind in ("values", "means", "squares", "steps"):
        assert torch.equal(getattr(after, kind)["tasks/a/head/y"], getattr(before, kind)["tasks/a/head/y"])


def test_finite_says_whether_all_gradients_are() -> None:
    made = optimised()
    assert made.finite()
    for bad in (float("nan"), float("inf"), -float("inf")):
        made.values["x"].grad = torch.tensor([0.0, bad, 0.0])
        assert not made.finite()
    made.clear()
    assert made.finite()


# --- hostile files -----------------------------------------------------------------------------------------------


def tensors(file: Path) -> dict[str, Tensor]:
    return dict(load_file(file))


def record(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return dict(json.loads(opened.metadata()["taskmerge"]))


def rewritten(file: Path, held: dict[str, Tensor] | None = None, **changes: Any) -> None:
    about = {**record(file), **changes}
    save_file(tensors(file) if held is None else held, file, {"taskmerge": json.dumps(about)})


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def gone(file: Path) -> None:
    file.unlink()


def no_metadata(file: Path) -> None:
    save_file(tensors(file), file)


def no_json(file: Path) -> None:
    save_file(tensors(file), file, {"taskmerge": "{"})


def a_list(file: Path) -> None:
    save_file(tensors(file), file, {"taskmerge": "[]"})


def deep(file: Path) -> None:
    save_file(tensors(file), file, {"taskmerge": "[" * 100_000})


def no_update(file: Path) -> None:
    rewritten(file, update=None)


def no_counts(file: Path) -> None:
    rewritten(file, counts=[1, 2])


def no_about(file: Path) -> None:
    rewritten(file, about="me")


def negative(file: Path) -> None:
    rewritten(file, update=-1)


NO_STATES = (empty, cut, gone, no_metadata, no_json, a_list, deep, no_update, no_counts, no_about, negative)


@pytest.mark.parametrize("damage", NO_STATES)
def test_what_is_no_state_is_a_bad_file(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_state(optimised().snapshot(1, {"flips": 0}), tmp_path, ABOUT)
    damage(tmp_path / "state.safetensors")
    with pytest.raises(BadFile) as error:
        load_state(tmp_path)
    assert error.value.exit_code == 3
    assert "state.safetensors" in error.value.message
    assert error.value.hint


def without_a_value(file: Path) -> None:
    held = tensors(file)
    del held["value:coefficients"]
    rewritten(file, held)


def without_a_square(file: Path) -> None:
    held = tensors(file)
    del held["square:coefficients"]
    rewritten(file, held)


def of_another_shape(file: Path) -> None:
    rewritten(file, {**tensors(file), "value:coefficients": torch.ones(2)})


def moments_of_another_shape(file: Path) -> None:
    rewritten(file, {**tensors(file), "mean:coefficients": torch.ones(2, 5)})


def with_a_stranger(file: Path) -> None:
    rewritten(file, {**tensors(file), "mean:stranger": torch.ones(2)})


def of_integers(file: Path) -> None:
    held = tensors(file)
    rewritten(file, {**held, "value:coefficients": held["value:coefficients"].long()})


def with_no_number(file: Path) -> None:
    held = tensors(file)
    rewritten(file, {**held, "value:coefficients": held["value:coefficients"] * float("nan")})


def beyond_the_end(file: Path) -> None:
    rewritten(file, update=10**6)


NOT_OF_THIS_RUN = (
    without_a_value, without_a_square, of_another_shape, moments_of_another_shape, with_a_stranger, of_integers,
    with_no_number, beyond_the_end,
)  # fmt: skip


@pytest.fixture(scope="module")
def unfinished(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after its second update, with a state of the first."""
    folder = tmp_path_factory.mktemp("unfinished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SAVED_EVERY", -1.0)
        stopped(suite, folder, patch)
    return folder


class StoppedError(Exception):
    pass


def stopped(suite: Suite, folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> None:
    def heard(told: Any, total: int) -> None:
        if told.update == 2:
            raise StoppedError

    with hearing(patch, heard), pytest.raises(StoppedError):
        adapt(suite, folder, method="adamerging", iterations=3, **options)


def copied(folder: Path, place: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize("damage", [*NO_STATES, *NOT_OF_THIS_RUN])
def test_a_run_is_not_resumed_from_a_bad_state(
    suite: Suite, unfinished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = copied(unfinished, tmp_path / "out")
    damage(folder / "state" / "state.safetensors")
    with pytest.raises(TaskmergeError) as error:
        adapt(suite, folder, method="adamerging", iterations=3, resume=True)
    assert error.value.exit_code == 3
    assert error.value.hint


@pytest.mark.parametrize("options", [
    {"iterations": 4}, {"lr": 0.5}, {"seed": 1}, {"batch_size": 4}, {"method": "tint"}, {"coefficient": 0.4},
    {"exclude": ("visual.conv1.*",)}, {"compute_dtype": "float64"}, {"limit": 10}, {"adapt_split": "test"},
])  # fmt: skip
def test_another_run_is_not_resumed(suite: Suite, unfinished: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = copied(unfinished, tmp_path / "out")
    if options == {"adapt_split": "test"}:
        options = {"seed": 2, **options}  # the same items: what was asked differs
    with pytest.raises(UsageError, match="another one") as error:
        adapt(suite, folder, **{"method": "adamerging", "iterations": 3, "resume": True, **options})
    assert error.value.exit_code == 2
    assert "--overwrite" in str(error.value.hint)


def test_other_experts_are_another_run(suite: Suite, unfinished: Path, tmp_path: Path) -> None:
    folder = copied(unfinished, tmp_path / "out")
    other = tmp_path / "cars.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(suite.folder / "cars.safetensors").items()}, other)
    tasks = tuple(replace(task, expert=other) if task.name == "cars" else task for task in suite.tasks)
    with pytest.raises(UsageError, match="experts"):
        adapt(replace(suite, tasks=tasks), folder, method="adamerging", iterations=3, resume=True)


def test_a_run_with_options_of_several_values_is_resumed(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it belongs to is compared as it is saved: lists for tuples."""
    monkeypatch.setattr(running, "SAVED_EVERY", -1.0)
    options = {"tasks": ("cars", "signs"), "exclude": ("visual.conv1.*",), "train": ("coefficients",)}
    stopped(suite, tmp_path / "out", monkeypatch, **options)
    adapt(suite, tmp_path / "out", method="adamerging", iterations=3, resume=True, **options)
    assert (tmp_path / "out" / "folder.json").exists()


def cut_trace(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:1]))


def torn(file: Path) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:20])


def another_trace(file: Path) -> None:
    file.write_text('{"a": 1}\n' * 3)


def tasks_as_a_list(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "tasks": [1]}) + "\n" for line in lines))


def no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\n" * 3)


def numbers(file: Path) -> None:
    file.write_text("1\n2\n3\n")


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that would wait for ever fails after a minute."""

    def late(*given: object) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/full")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless_line(file: Path) -> None:
    file.write_text("[" * (trace.LONGEST + 1) + "\n")


def huge(file: Path) -> None:
    os.truncate(file, trace.LARGEST + 1)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("damage", [
    cut_trace, torn, another_trace, tasks_as_a_list, no_text, numbers, gone, device, pipe, endless_line, huge,
])  # fmt: skip
def test_a_trace_that_does_not_lead_to_the_state_is_a_bad_file(
    suite: Suite, unfinished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = copied(unfinished, tmp_path / "out")
    damage(folder / "trace.jsonl")
    with pytest.raises(BadFile) as error:
        adapt(suite, folder, method="adamerging", iterations=3, resume=True)
    assert error.value.exit_code == 3
    assert "trace.jsonl" in error.value.message
    assert "--overwrite" in str(error.value.hint)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("damage", [device, pipe])
def test_a_state_that_is_no_file_is_a_bad_file(
    suite: Suite, unfinished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = copied(unfinished, tmp_path / "out")
    damage(folder / "state" / "state.safetensors")
    with pytest.raises(BadFile) as error:
        adapt(suite, folder, method="adamerging", iterations=3, resume=True)
    assert error.value.exit_code == 3


def test_a_restored_run_goes_on_from_its_update(suite: Suite, tmp_path: Path) -> None:
    options = {"method": "adarank", "iterations": 4, "mask_lr": 0.1, "overwrite": True}
    whole, half = (assembled(suite, tmp_path / "out", **options).run for _ in range(2))
    list(whole.updates())
    updates = half.updates()
    for _ in range(2):
        next(updates)
    state = half.snapshot()
    again = assembled(suite, tmp_path / "out", **options).run
    again.restore(state)
    assert [record.update for record in again.updates()] == [3, 4]
    assert same(again.snapshot(), whole.snapshot())
    assert whole.counts["flips"] > 0
