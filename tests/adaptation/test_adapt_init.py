"""`--init FOLDER`: a run starts from all that an earlier one wrote, or says what of it would be lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, adapt, assembled, clip_suite, contents
from safetensors.torch import load_file

from taskmerge.checkpoint.adapted import read_adapted
from taskmerge.checkpoint.learned import read_learned
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.specs.suite import Suite

QUICK: dict[str, Any] = {"iterations": 3, "lr": 0.05}
MASKS: dict[str, Any] = {"method": "adarank", "mask_lr": 0.1, **QUICK}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("init"))


@pytest.fixture(scope="module")
def earlier(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of earlier runs, by what was learnt."""
    place = tmp_path_factory.mktemp("earlier")
    runs: dict[str, dict[str, Any]] = {
        "masks": MASKS,
        "mean masks": {**MASKS, "origin": "mean"},
        "entries": {"method": "concrete", "lr": 2.0, "iterations": 3},
        "heads": {"method": "tint", **QUICK},
        "masks and heads": {**MASKS, "with_": "tint"},
        "block": {"method": "symerge", "layer": "1", **QUICK},
        "fixed block": {"method": "blocks", **QUICK},
        "adapter": {"method": "surgery", "size": 4, **QUICK},
        "solved": {"method": "heads"},
    }
    for name, options in runs.items():
        adapt(suite, place / name, **options)
    return {name: place / name for name in runs}


def learned_alike(one: Path, other: Path) -> bool:
    return read_learned(one) == read_learned(other)


@pytest.mark.parametrize(("folder", "options"), [
    ("masks", {"method": "adarank"}), ("mean masks", {"method": "adarank", "origin": "mean"}),
    ("masks", {"method": "adarank", "train": ("coefficients",)}), ("heads", {"method": "tint"}),
    ("masks and heads", {"method": "adarank", "with_": "tint"}), ("block", {"method": "symerge", "layer": "1"}),
    ("fixed block", {"method": "blocks", "refit_heads": False}), ("adapter", {"method": "surgery", "size": 4}),
])  # fmt: skip
def test_no_update_from_a_folder_gives_that_folder(
    suite: Suite, earlier: dict[str, Path], folder: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Model, coefficients, masks, heads, blocks and adapters are those that were learnt before."""
    before, after = earlier[folder], tmp_path / "out"
    adapt(suite, after, init=str(before), iterations=0, **options)
    own = [name for name in contents(before) if name.endswith(".safetensors")]
    assert set(own) == {name for name in contents(after) if name.endswith(".safetensors")}
    for name in own:
        if name.startswith("heads/") and folder == "fixed block":
            continue  # solved for anew
        one, other = load_file(before / name), load_file(after / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), (name, key)


def test_masks_are_where_learning_goes_on(suite: Suite, earlier: dict[str, Path], tmp_path: Path) -> None:
    bits = read_learned(earlier["masks"]).masks
    assert any(not bool(own.all()) for own in bits.values()), "the earlier run must have switched something off"
    found = assembled(suite, tmp_path / "out", method="adarank", init=str(earlier["masks"]))
    again = found.run.on_weights.learned(TASKS).masks
    assert all(torch.equal(again[name], bits[name]) for name in bits)
    assert all(value.requires_grad for value in found.run.on_weights.values.values())


def test_heads_of_a_folder_are_kept_where_none_are_learnt(
    suite: Suite, earlier: dict[str, Path], tmp_path: Path
) -> None:
    """The teacher still has the suite's head: experts were trained with it."""
    options = {"init": str(earlier["heads"]), **QUICK}
    adapt(suite, tmp_path / "out", method="adamerging", **options)
    assert read_adapted(tmp_path / "out").manifest.needs_task_index
    found = assembled(suite, tmp_path / "again", method="adamerging", **options)
    for side, opened in zip(found.run.sides, found.opened.tasks, strict=True):
        head = load_file(earlier["heads"] / "heads" / f"{side.name}.safetensors")["weight"]
        assert torch.equal(load_file(tmp_path / "out" / "heads" / f"{side.name}.safetensors")["weight"], head)
        assert torch.equal(side.head.weight, head)  # type: ignore[arg-type]  # a tensor
        assert not torch.equal(opened.head.weight, head)  # type: ignore[arg-type]  # a tensor
        assert not side.own


def test_what_was_taken_is_told(suite: Suite, earlier: dict[str, Path], tmp_path: Path) -> None:
    folder = earlier["masks and heads"]
    receipt = adapt(suite, tmp_path / "out", method="adarank", with_="tint", init=str(folder), iterations=0)
    assert f"coefficients, masks, heads start from those of {folder}" in receipt.notes


@pytest.mark.parametrize(("folder", "options", "says"), [
    ("masks", {"method": "adamerging"}, "its masks would be lost"),
    ("masks", {"method": "adarank", "origin": "mean"}, "learnt of vectors from the base"),
    ("mean masks", {"method": "adarank"}, "learnt of vectors from the experts' mean"),
    ("entries", {"method": "concrete"}, "one draw of bits"),
    ("block", {"method": "adamerging"}, "tasks have blocks of their own"),
    ("block", {"method": "heads"}, "tasks have blocks of their own"),
    ("block", {"method": "symerge", "layer": "0"}, "has other tensors than this run's"),
    ("adapter", {"method": "heads"}, "tasks have adapters of their own"),
    ("adapter", {"method": "surgery"}, "is no surgery adapter of width 16"),
    ("solved", {"method": "adamerging"}, "`heads` leaves the encoder as it is"),
    ("heads", {"method": "adamerging", "layout": "task"}, "one a task and tensor"),
    ("heads", {"method": "adamerging", "coefficient": 0.4}, "so does --init"),
])  # fmt: skip
def test_what_would_be_lost_is_refused_and_named(
    suite: Suite, earlier: dict[str, Path], folder: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says) as error:
        adapt(suite, tmp_path / "out", init=str(earlier[folder]), **options)
    assert error.value.exit_code == 2
    assert error.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("folder", "file", "method"), [
    ("masks", "coefficients.safetensors", "adamerging"), ("entries", "coefficients.safetensors", "concrete"),
    ("block", "coefficients.safetensors", "adamerging"), ("adapter", "model.safetensors", "heads"),
    ("block", "model.safetensors", "heads"),
])  # fmt: skip
def test_what_the_hints_name_works(
    suite: Suite, earlier: dict[str, Path], folder: str, file: str, method: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        adapt(suite, tmp_path / "out", method=method, init=str(earlier[folder]))
    assert str(earlier[folder] / file) in str(error.value.hint)
    adapt(suite, tmp_path / "out", method=method, init=str(earlier[folder] / file), iterations=0)
    if file.startswith("coefficients"):
        assert read_learned(tmp_path / "out").coefficients.keys() == read_learned(earlier[folder]).coefficients.keys()
        one, other = load_file(earlier[folder] / file), load_file(tmp_path / "out" / file)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("options", "says"), [
    ({"tasks": ("cars", "digits")}, "are no start for cars, digits"), ({"qkv": "split"}, "are not of its 3 matrices"),
    ({"exclude": ("visual.conv1.*",)}, "the coefficients there are of other tensors"),
])  # fmt: skip
def test_coefficients_of_other_tensors_are_no_start(
    suite: Suite, earlier: dict[str, Path], options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskmergeError, match=says) as error:
        adapt(suite, tmp_path / "out", method="adarank", init=str(earlier["masks"]), **options)
    assert isinstance(error.value, Mismatch)


def test_an_unfinished_folder_is_no_start(suite: Suite, earlier: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(earlier["heads"], tmp_path / "cut")
    (tmp_path / "cut" / "folder.json").unlink()
    for method in ("adamerging", "heads"):
        with pytest.raises(BadFile, match="has not ended"):
            adapt(suite, tmp_path / "out", method=method, init=str(tmp_path / "cut"))
