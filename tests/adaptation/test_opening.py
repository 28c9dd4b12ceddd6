"""What adaptation begins with: tasks that take part, tasks that are left to the others, and what is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import ITEMS, TASKS, adapt, assembled, clip_suite
from safetensors.torch import load_file, save_file

from taskmerge.checkpoint.adapted import read_adapted
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.specs.suite import Suite, Task


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return clip_suite(tmp_path / "suite")


def changed(suite: Suite, name: str = "cars", **changes: Any) -> Suite:
    """The suite with one task changed."""
    tasks: tuple[Task, ...] = tuple(replace(task, **changes) if task.name == name else task for task in suite.tasks)
    return replace(suite, tasks=tasks)


def with_values(suite: Suite, *names: str) -> Suite:
    """Some tasks become regressions, with a head of one output."""
    for name in names:
        head = suite.folder / f"value_{name}.safetensors"
        save_file({"weight": load_file(suite.folder / f"head_{name}.safetensors")["weight"][:1].contiguous()}, head)
        suite = changed(suite, name, kind="regression", metric="pearson", classes=(), head=head)
    return suite


# --- tasks that have no classes ----------------------------------------------------------------------------------


def test_entropy_leaves_values_to_the_other_tasks(suite: Suite, tmp_path: Path) -> None:
    """Its expert is merged, and has coefficients; nothing is learnt on it."""
    found = assembled(with_values(suite, "digits"), tmp_path / "out", method="adamerging")
    assert [side.name for side in found.run.sides] == ["cars", "signs"]
    assert found.opened.left_out == ("digits",)
    assert found.run.on_weights.values["coefficients"].shape[1] == 3
    receipt = adapt(with_values(suite, "digits"), tmp_path / "whole", method="adamerging", iterations=1)
    assert any("entropy says nothing about `digits`" in note for note in receipt.notes)


def test_what_the_expert_says_takes_them_in(suite: Suite, tmp_path: Path) -> None:
    found = assembled(with_values(suite, "digits"), tmp_path / "out", method="symerge", updates="joint")
    kinds = {side.name: (side.objective.name, side.objective.filter) for side in found.run.sides}
    assert kinds == {"cars": ("self", "code"), "digits": ("l2", "none"), "signs": ("self", "code")}
    record = next(found.run.updates())
    told = record.tasks["digits"]
    assert (told.kept, told.agreement, told.entropy, told.largest_class) == (1.0, None, None, None)
    side = next(side for side in found.run.sides if side.name == "digits")
    batch = side.batch(0, 0, found.run.horizon.batch_size)
    found.run.restore(assembled(with_values(suite, "digits"), tmp_path / "out", method="symerge").run.snapshot())
    found.run.form()
    with torch.no_grad():
        _, outputs = side.outputs(side.features(batch, torch.device("cpu")))
    assert told.loss == pytest.approx(float((outputs - side.teacher.outputs[batch]).square().mean()), rel=1e-4)


def test_nothing_but_values_has_no_entropy(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says nothing about any task") as error:
        assembled(with_values(suite, *TASKS), tmp_path / "out", method="adamerging")
    assert error.value.exit_code == 2
    assert "--objective self" in str(error.value.hint)
    assembled(with_values(suite, *TASKS), tmp_path / "out", method="adamerging", objective="self")


# --- what is refused -------------------------------------------------------------------------------------------


def one_output(suite: Suite) -> Suite:
    head = suite.folder / "head_cars.safetensors"
    save_file({"weight": load_file(head)["weight"][:1].contiguous()}, head)
    return changed(suite, classes=())


def no_file(suite: Suite) -> Suite:
    return changed(suite, expert=suite.folder / "nowhere.safetensors")


def damaged(suite: Suite) -> Suite:
    file = suite.folder / "cars.safetensors"
    held = load_file(file)
    held["visual.proj"][0, 0] = float("nan")
    save_file(held, file)
    return suite


def another_shape(suite: Suite) -> Suite:
    file = suite.folder / "cars.safetensors"
    save_file({**load_file(file), "visual.proj": torch.zeros(24, 13)}, file)
    return suite


def a_tensor_more(suite: Suite) -> Suite:
    file = suite.folder / "cars.safetensors"
    save_file({**load_file(file), "visual.more": torch.zeros(3)}, file)
    return suite


@pytest.mark.parametrize(("wrong", "kind", "says"), [
    (lambda suite: changed(suite, expert=None), UsageError, "`cars` has no expert"),
    (lambda suite: changed(suite, splits={}), UsageError, "`cars` has no split `adapt`"),
    (one_output, Mismatch, "has one output"), (no_file, BadFile, "nowhere.safetensors"),
    (damaged, BadFile, "NaN"), (another_shape, Mismatch, "visual.proj"), (a_tensor_more, Mismatch, "visual.more"),
    (lambda suite: changed(suite, head=suite.folder / "base.safetensors"), Mismatch, "base.safetensors"),
])  # fmt: skip
def test_what_does_not_fit_is_named(
    suite: Suite, tmp_path: Path, wrong: Any, kind: type[TaskmergeError], says: str
) -> None:
    with pytest.raises(kind) as error:
        assembled(wrong(suite), tmp_path / "out", method="adamerging")
    assert says in error.value.message
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_matrices_is_told_of_other_starts(suite: Suite, tmp_path: Path) -> None:
    """The method of the merge is called --init here: what a hint names can be typed."""
    only = {"include": "*bias", "inputs": sorted(str(task.expert) for task in suite.tasks)}
    with pytest.raises(Mismatch, match="finds no matrix to truncate") as caught:
        assembled(suite, tmp_path / "out", method="heads", **only)
    assert "--init average" in str(caught.value.hint)


# --- tasks and items that take part ------------------------------------------------------------------------------


def test_tasks_that_are_named_take_part_alone(suite: Suite, tmp_path: Path) -> None:
    """As if the suite had no others, in whatever order they are named."""
    adapt(suite, tmp_path / "named", method="adarank", tasks=("signs", "cars"), iterations=1)
    two = replace(suite, tasks=tuple(task for task in suite.tasks if task.name != "digits"))
    adapt(two, tmp_path / "two", method="adarank", iterations=1)
    named, alone = (tmp_path / name / "model.safetensors" for name in ("named", "two"))
    assert named.read_bytes() == alone.read_bytes()
    with pytest.raises(UsageError, match="unknown task"):
        adapt(suite, tmp_path / "no", method="adarank", tasks=("sign",))


def test_a_limit_takes_fewer_items(suite: Suite, tmp_path: Path) -> None:
    found = assembled(suite, tmp_path / "out", method="adamerging", limit=9)
    assert all(len(side.items) == len(side.teacher.outputs) == 9 for side in found.run.sides)
    more = assembled(suite, tmp_path / "out", method="adamerging", limit=ITEMS + 50)
    assert all(len(side.items) == ITEMS for side in more.run.sides)


def test_a_folder_says_what_it_has_seen(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", method="adamerging", iterations=3, limit=9)
    protocol = read_adapted(tmp_path / "out").manifest.protocol
    assert protocol is not None
    for words in ("`adapt`", "27 items without labels", "3 iterations", "3 updates of 8 items, joint", "seed 0"):
        assert words in protocol
