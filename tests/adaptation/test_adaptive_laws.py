"""Laws that every adaptive method keeps, on three tasks of the example: bytes, order, threads, what changes nothing."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_cases import SLICE, adapt, assembled, contents, hearing, tiny
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.adaptation import running
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.objectives import ExpertView, TaskObjective
from taskmerge.checkpoint.learned import read_learned
from taskmerge.errors import TaskmergeError
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.request import requested
from taskmerge.methods.adaptive_registry import adaptive_methods

METHODS = tuple(adaptive_methods())
LEARNING = tuple(name for name, method in adaptive_methods().items() if method.bound({}).iterations)
SMALL: dict[str, Any] = {"iterations": 2, "limit": 64, "batch_size": 16}
PARTS = ("model.safetensors", "coefficients.safetensors", "masks.safetensors", "heads/", "blocks/", "adapters/")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a method wrote, on one thread; each runs once."""
    place = tmp_path_factory.mktemp("laws")

    @cache
    def of(method: str) -> Path:
        adapt(tiny(), place / method, method=method, **SMALL)
        return place / method

    return of


def run_of(method: str, folder: Path, **options: Any) -> Adaptation:
    """A run before its first update."""
    return assembled(tiny(), folder / "out", method=method, **{**SMALL, "limit": 16, "batch_size": 8, **options}).run


def frozen(run: Adaptation) -> dict[str, Tensor]:
    """Everything that an update may change."""
    state = run.snapshot()
    kinds = {"value": state.values, "mean": state.means, "square": state.squares, "step": state.steps}
    return {f"{kind} {name}": tensor for kind, own in kinds.items() for name, tensor in own.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_forms_the_same_bytes_again(method: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of(method)
    request = requested((), {"output": tmp_path / "again.safetensors"}, recipe=folder / "recipe.yaml")
    merge_requested(request)
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_parts_are_those_of_the_live_run(method: str, tmp_path: Path) -> None:
    """Coefficients, bits and what tasks have of their own are written as they were learnt."""
    options = {**SMALL, "mask_lr": 0.06}
    found = assembled(tiny(), tmp_path / "out", method=method, goes_on=True, **options)
    run, folder = found.run, tmp_path / "out"
    if run.on_weights.composed:
        learned, effective = read_learned(folder), run.on_weights.effective(0)
        assert learned.tasks == tuple(sorted(SLICE))
        for row, name in enumerate(found.names):
            assert torch.equal(learned.coefficients[name], effective.coefficients[row].detach())
        flat = {name: mask[..., : mask.shape[-1]].flatten() for name, mask in learned.masks.items()}
        gates = {name: gates.detach() > 0 for name, gates in effective.gates.items()}
        assert same(flat, gates)
    for side in run.sides:
        for name, value in side.own.items():
            kind, _, tensor = name.partition("/")
            file = folder / f"{kind}s" / f"{side.name}.safetensors"
            assert torch.equal(load_file(file)[tensor], value.detach())


def test_the_same_again_on_two_threads_gives_the_same_files(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    pass


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_no_byte(method: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    adapt(tiny(), tmp_path / "two", method=method, threads=2, **SMALL)
    assert contents(tmp_path / "two") == contents(folder_of(method))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_tasks_changes_no_byte(method: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Joint updates add up in the order of names; which task comes when in sequential ones is a function of names."""
    adapt(tiny(*reversed(SLICE)), tmp_path / "out", method=method, **SMALL)
    ours, others = contents(tmp_path / "out"), contents(folder_of(method))
    assert {n: v for n, v in ours.items() if n.startswith(PARTS)} == {n: v for n, v in others.items() if n.startswith(PARTS)}


# --- updates that change nothing -------------------------------------------------------------------------------
