"""Methods on a merged encoder that stays: gradients of adapters, heads and own blocks, and what is computed once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptation_cases import TASKS, Assembled, State, assembled, clip_suite, doubles, text_suite
from naive import Answer, answer, task_loss
from paired import own
from torch import Tensor
from torch.func import functional_call

from taskmerge.adaptation.tasks import TaskSide, inputs_at
from taskmerge.models.adapters import ProbAdapter
from taskmerge.seeds import uniform_at
from taskmerge.specs.suite import Suite

CPU = torch.device("cpu")
WRAPPERS = {"clip": "", "bert": "bert.", "gpt2": "transformer."}
CASES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("surgery", "clip", {"updates": "joint"}),
    ("surgery", "clip", {"objective": "l2", "init": "cart"}),
    ("surgery", "bert", {"objective": "cosine"}),
    ("probsurgery", "clip", {"updates": "joint"}),
    ("blocks", "clip", {"updates": "joint"}),
    ("blocks", "clip", {"layer": "0"}),
    (
        "blocks",
        "clip",
        {"layer": "all", "block_start": "merged", "objective": "self", "on": "outputs", "filter": "code"},
    ),
    ("blocks", "bert", {}),
    ("blocks", "gpt2", {"updates": "joint"}),
    ("tint", "clip", {"train": ("heads",), "updates": "joint"}),
)


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Suite]:
    folder = tmp_path_factory.mktemp("fixed")
    return {"clip": clip_suite(folder / "clip")} | {
        family: text_suite(folder / family, family) for family in ("bert", "gpt2")
    }


def moved(found: Assembled) -> None:
    """What learns to a random point: adapters that change something, drawn biases of some width."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in found.run.optimised.values.values():
            if value.requires_grad:
                value.add_(0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64))


def naive_loss(found: Assembled, values: State, wrapper: str) -> Tensor:
    """Σ of the tasks' mean losses, as a graph from the tasks' own values; the encoder is what it is."""
    run, losses = found.run, []
    iteration, turn = run.horizon.turn(0, run.sides)
    for side in turn:
        inputs = inputs_at(side.items.inputs, side.batch(0, iteration, run.horizon.batch_size), CPU)
        merged, expert = model_of(found, side, values, inputs), expert_of(found, side, inputs, wrapper)
        loss = task_loss(side.objective.name, side.objective.on, side.objective.filter, merged, expert)
        if loss is None:
            continue
        if isinstance(side.adapter, ProbAdapter):
            loss = (
                loss + side.penalty * divergence(own(values, side.name, "adapter"), encoded(found, side, inputs)).mean()
            )
        losses.append(loss)
    return torch.stack(losses).sum()


def encoded(found: Assembled, side: TaskSide, inputs: State) -> Tensor:
    features: Tensor = functional_call(found.module, found.live(), (inputs,))
    return features


def model_of(found: Assembled, side: TaskSide, values: State, inputs: State) -> Answer:
    """The encoder with the task's own block, the adapter, the head."""
    head = {name: tensor.detach() for name, tensor in side.head.state_dict().items()} | own(values, side.name, "head")
    weights, adapter = found.live() | own(values, side.name, "block"), own(values, side.name, "adapter")
    normalise = found.place.backbone.normalised
    if not isinstance(side.adapter, ProbAdapter):
        return answer(found.module, weights, inputs, head, normalise=normalise, adapter=adapter or None)
    features = encoded(found, side, inputs)
    mean, log_variance = moments(adapter, features)
    drawn = features - (mean + noise(found, side, features.shape[1]) * torch.exp(0.5 * log_variance))
    return Answer(drawn, torch.zeros(len(drawn), 2))


def expert_of(found: Assembled, side: TaskSide, inputs: State, wrapper: str) -> Answer:
    """The expert's features, and its outputs by the original head."""
    state = doubles(found.suite.folder / f"{side.name}.safetensors")
    weights = {name.removeprefix(wrapper): tensor for name, tensor in state.items() if name.startswith(wrapper)}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler")}
    opened = next(one for one in found.opened.tasks if one.task.name == side.name)
    head = {name: tensor.detach() for name, tensor in opened.head.state_dict().items()}
    with torch.no_grad():
        return answer(found.module, weights, inputs, head, normalise=found.place.backbone.normalised)


def moments(adapter: State, features: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.relu(features @ adapter["encode"].T)
    return hidden @ adapter["mean"].T, hidden @ adapter["log_variance"].T


def divergence(adapter: State, features: Tensor) -> Tensor:
    """KL(N(m, exp v) ‖ N(0, 1)) summed over features, one an item."""
    mean, log_variance = moments(adapter, features)
    return (0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)).sum(1)


def noise(found: Assembled, side: TaskSide, width: int) -> Tensor:
    """Normal numbers of seed, task, update 0 and item."""
    places = side.batch(0, 0, found.run.horizon.batch_size)
    rows = [uniform_at(0, side.name, "noise 0", place * width, width) for place in places.tolist()]
    uniform = torch.stack(rows).clamp(1e-7, 1 - 1e-7).double()
    return torch.distributions.Normal(0.0, 1.0).icdf(uniform)


@pytest.mark.parametrize(("method", "model", "options"), CASES)
def test_gradients_of_what_is_a_tasks_own(
    suites: dict[str, Suite], method: str, model: str, options: Mapping[str, Any], tmp_path: Path
) -> None:
    """Against automatic differentiation of the whole encoder, though a part of it is computed once."""
    keywords = {"batch_size": 11, "iterations": 1, "compute_dtype": "float64", **options}
    found = assembled(suites[model], tmp_path / "out", method=method, **keywords)
    if not found.run.on_weights.composed:
        moved(found)
    else:
        found.run.form()
    values = {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in found.run.optimised.values.items()
    }
    learnt = {name: value for name, value in values.items() if value.requires_grad}
    loss = naive_loss(found, values, WRAPPERS[model])
    wanted = dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values()), allow_unused=True), strict=True))
    record = next(found.run.updates())
    assert record.skipped is None
    assert sum(own.loss for own in record.tasks.values() if own.loss) == pytest.approx(float(loss.detach()), rel=1e-9)
    for name, value in found.run.optimised.values.items():
        if value.grad is None or wanted.get(name) is None:
            assert value.grad is None or not value.grad.any(), name
            assert wanted.get(name) is None or not wanted[name].any(), name
            continue
        scale = float(wanted[name].abs().max().clamp(min=1e-3))
        torch.testing.assert_close(value.grad, wanted[name], rtol=0, atol=1e-10 * scale)
    assert any(value.grad is not None and bool(value.grad.any()) for value in found.run.optimised.values.values())


def test_the_encoder_and_the_teachers_stay_as_they_are(suites: dict[str, Suite], tmp_path: Path) -> None:
    for method in ("surgery", "probsurgery", "blocks"):
        found = assembled(suites["clip"], tmp_path / method, method=method, iterations=2)
        before, outputs = found.live(), {name: one.outputs.clone() for name, one in found.teachers.items()}
        list(found.run.updates())
        assert all(torch.equal(before[name], tensor) for name, tensor in found.live().items())
        assert all(torch.equal(found.teachers[task].outputs, outputs[task]) for task in TASKS)
