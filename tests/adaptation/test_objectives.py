"""What counts and how much: filters and losses of one task against plain loops, and which fit which kind of task."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import is_kept, item_loss

from taskmerge.adaptation.objectives import OF_CLASSES, ExpertView, TaskObjective, objective_of
from taskmerge.methods.adaptive import OBJECTIVES, Filter, Objective
from taskmerge.specs.suite import DENSE, TaskKind

KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
SCORES = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=6)


def view(outputs: torch.Tensor) -> ExpertView:
    return ExpertView(outputs, torch.empty(0))


@settings(max_examples=80, deadline=None)
@given(SCORES, st.integers(0, 2**31), st.sampled_from(get_args(Filter)))
def test_filters_are_their_definitions(scores: list[list[float]], seed: int, filter_: Filter) -> None:
    ours = torch.tensor(scores, dtype=torch.float64)
    theirs = (
        ours.roll(1, 0) * 1.1 + 0.1 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed)).double()
    )
    kept = TaskObjective("self", "outputs", filter_).kept(ours.requires_grad_(), view(theirs))
    assert kept.dtype == torch.bool
    assert kept.tolist() == [is_kept(filter_, one, other) for one, other in zip(ours.detach(), theirs, strict=True)]


def test_equal_models_keep_everything() -> None:
    """Neither is surer than the other."""
    outputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    for filter_ in get_args(Filter):
        assert bool(TaskObjective("self", "outputs", filter_).kept(outputs, view(outputs)).all())


def test_the_code_drops_less_than_the_paper() -> None:
    """A model that is surer of the same class counts in the code, not in the paper."""
    ours, theirs = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert TaskObjective("self", "outputs", "code").kept(ours, view(theirs)).tolist() == [True, False]
    assert TaskObjective("self", "outputs", "paper").kept(ours, view(theirs)).tolist() == [False, False]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_one_value_an_item(name: Objective) -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = torch.stack([item_loss(name, one, other) for one, other in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(TaskObjective(name).loss(torch.empty(0), ours, view(theirs)), wanted)
    if name != "entropy":
        features = TaskObjective(name, "features").loss(ours, torch.empty(0), ExpertView(torch.empty(0), theirs))
        torch.testing.assert_close(features, wanted)


# --- kinds of tasks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("on", ["outputs", "features"])
def test_which_loss_stands_for_which_on_what_kind_of_task(kind: TaskKind, name: Objective, on: str) -> None:
    """Classes and maps of them take all; values have no entropy, and a loss of values for one of classes."""
    instead = {"regression": "l2", "depth": "l1", "normals": "cosine"}
    found = objective_of(kind, name, on, "code")  # type: ignore[arg-type]  # one of the two
    if name == "entropy" and kind in instead:
        assert found is None
        return
    assert found is not None
    expected = instead[kind] if kind in instead and name in OF_CLASSES and on == "outputs" else name
    assert (found.name, found.on) == (expected, on)
    assert found.filter == ("none" if kind in (*DENSE, "regression") else "code")


@pytest.mark.parametrize(("kind", "shape"), [
    ("regression", (6,)), ("segmentation", (6, 3, 4, 5)), ("depth", (6, 1, 4, 5)), ("normals", (6, 3, 4, 5)),
])  # fmt: skip
def test_values_and_maps_have_one_loss_an_item_and_no_filter(kind: TaskKind, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    objective = objective_of(kind, "self", "outputs", "paper")
    assert objective is not None
    loss = objective.loss(torch.empty(0), ours, view(theirs))
    assert loss.shape == (6,)
    assert bool(objective.kept(ours, view(theirs)).all())
    for item, value in enumerate(loss):
        if ours.dim() == 1:
            torch.testing.assert_close(value, (ours[item] - theirs[item]) ** 2)
            continue
        one, other = ours[item].flatten(1), theirs[item].flatten(1)
        places = [item_loss(objective.name, one[:, place], other[:, place]) for place in range(20)]
        torch.testing.assert_close(value, torch.stack(places).mean())
