"""The rule on models that were really trained, and on what people do to models: whose fine-tunings are these?"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import taskmerge
from taskmerge import Diagnosis

ROOT = Path(__file__).parents[2]
State = dict[str, Tensor]
Task = nn.Module


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 32), *(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 6)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.GELU())))


def trained(model: nn.Module, task: Task, steps: int, rate: float) -> nn.Module:
    """A copy that has learnt to answer as `task` does."""
    learner, chance = copy.deepcopy(model), torch.Generator().manual_seed(steps)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=rate)
    for _ in range(steps):
        inputs = torch.randn(32, 12, generator=chance)
        with torch.no_grad():
            wanted = task(inputs)
        optimiser.zero_grad()
        nn.functional.mse_loss(learner(inputs), wanted).backward()
        optimiser.step()
    return learner


def state(model: nn.Module) -> State:
    """Its weights, called as the layers of a transformer are."""
    return {f"layers.{name}": one.detach().clone() for name, one in model.state_dict().items()}


@pytest.fixture(scope="module")
def models() -> dict[str, State]:
    """A base, and what came of it and of others."""
    general, other = network(100), network(101)
    base, stranger = (trained(network(seed), general, 150, 3e-3) for seed in (1, 2))
    further = trained(base, other, 300, 2e-3)
    found = {"base": base, "stranger": stranger, "further": further, "unborn": network(3)}
    for place, task in enumerate((network(200), network(201))):
        found[f"tuned{place}"] = trained(base, task, 30, 5e-4)
        found[f"strange{place}"] = trained(stranger, task, 30, 5e-4)
        found[f"later{place}"] = trained(further, task, 30, 5e-4)
    return {name: state(model) for name, model in found.items()}


def diagnosed(folder: Path, base: State | None, **experts: State) -> Diagnosis:
    for name, one in experts.items():
        save_file({key: value.contiguous() for key, value in one.items()}, folder / f"{name}.safetensors")
    if base is not None:
        save_file(base, folder / "origin.safetensors")
    return taskmerge.doctor(
        {name: folder / f"{name}.safetensors" for name in experts},
        base=folder / "origin.safetensors" if base is not None else None,
    )


def kin(diagnosis: Diagnosis) -> dict[str, str]:
    return {one.name: one.closeness.kin for one in diagnosis.experts if one.closeness}


def warnings(diagnosis: Diagnosis) -> list[str]:
    return [one.what for one in diagnosis.findings if one.level == "warning"]


def test_fine_tunings_are_known_from_strangers(models: dict[str, State], tmp_path: Path) -> None:
    names = ("tuned0", "tuned1", "strange0", "stranger", "unborn")
    found = diagnosed(tmp_path, models["base"], **{name: models[name] for name in names})
    assert kin(found) == {
        "tuned0": "fine-tuning", "tuned1": "fine-tuning", "strange0": "unrelated", "stranger": "unrelated",
        "unborn": "unrelated",
    }  # fmt: skip
    assert found.fits, "shapes fit: a merge goes through"
    assert any("strange0, stranger are close to each other" in text for text in warnings(found)) or any(
        "`strange0`" in text for text in warnings(found)
    )
    assert any("unborn is probably not a fine-tuning of this base" in text for text in warnings(found))
    for command in found.commands:
        assert {word for word in command.arguments if word.endswith(".safetensors") and "merged" not in word} == {
            str(tmp_path / f"{name}.safetensors") for name in ("tuned0", "tuned1", "origin")
        }


def test_training_on_is_far_and_no_stranger(models: dict[str, State], tmp_path: Path) -> None:
    """Twice as long as the base itself was trained."""
    found = diagnosed(tmp_path, models["base"], further=models["further"], tuned0=models["tuned0"])
    assert kin(found)["further"] in ("far", "fine-tuning")
    (one,) = (one.closeness for one in found.experts if one.name == "further")
    assert one is not None
    assert one.median is not None
    assert one.median > 0.6


@pytest.mark.parametrize(("front", "origin"), [("strange", "stranger"), ("later", "further")])
def test_fine_tunings_of_something_else_are_told(
    models: dict[str, State], tmp_path: Path, front: str, origin: str
) -> None:
    experts = {f"{front}{place}": models[f"{front}{place}"] for place in (0, 1)}
    found = diagnosed(tmp_path, models["base"], **experts)
    said = " ".join(warnings(found))
    assert (
        f"{front}0, {front}1 are close to each other" in said or f"vectors of {front}0, {front}1 are nearly one" in said
    )
    right = diagnosed(tmp_path, models[origin], **experts)
    assert set(kin(right).values()) == {"fine-tuning"}
    assert warnings(right) == []


def test_without_a_base_strangers_are_told_apart(models: dict[str, State], tmp_path: Path) -> None:
    names = ("tuned0", "tuned1", "strange0", "strange1", "unborn")
    found = diagnosed(tmp_path, None, **{name: models[name] for name in names})
    assert set(found.families) == {("strange0", "strange1"), ("tuned0", "tuned1"), ("unborn",)}
    assert any("different starts" in text for text in warnings(found))
    assert len(found.commands) == 1
    alike = diagnosed(tmp_path, None, tuned0=models["tuned0"], tuned1=models["tuned1"])
    assert alike.families == (("tuned0", "tuned1"),)
    assert warnings(alike) == []


# --- what people do to models ----------------------------------------------------------------------------------


def on_matrices(change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[State], State]:
    def changed(weights: State) -> State:
        chance = torch.Generator().manual_seed(0)
        return {
            name: change(one.float(), chance).to(one.dtype) if one.dim() > 1 else one for name, one in weights.items()
        }

    return changed


def pruned(share: float) -> Callable[[State], State]:
    def cut(one: Tensor, chance: torch.Generator) -> Tensor:
        least = one.abs().flatten().sort().values[min(int(share * one.numel()), one.numel() - 1)]
        return one * (one.abs() >= least)

    return on_matrices(cut)


def noised(share: float) -> Callable[[State], State]:
    return on_matrices(
        lambda one, chance: one + share * one.norm() / math.sqrt(one.numel()) * torch.randn(one.shape, generator=chance)
    )


def shuffled(one: Tensor, chance: torch.Generator) -> Tensor:
    """Neurons on both sides in another order."""
    for axis in (0, 1):
        one = one.index_select(axis, torch.randperm(one.shape[axis], generator=chance))
    return one


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (noised(0.001), "fine-tuning"),
        (noised(0.1), "fine-tuning"),
        (noised(1.0), "far"),
        (noised(5.0), "unrelated"),
        (pruned(0.5), "fine-tuning"),
        (pruned(0.9), "far"),
        (on_matrices(shuffled), "unrelated"),
        (on_matrices(lambda one, chance: torch.randn(one.shape, generator=chance) * one.std()), "unrelated"),
        (on_matrices(lambda one, chance: 1.5 * one), "far"),
        (on_matrices(lambda one, chance: -one), "unrelated"),
        (on_matrices(lambda one, chance: torch.zeros_like(one)), "unrelated"),
        (lambda weights: weights, "equal"),
        (lambda weights: {name: one.bfloat16() for name, one in weights.items()}, "equal"),
    ],
)
def test_the_embedded_example(tmp_path: Path, change: Callable[[State], State], wanted: str) -> None:
    base = load_file(ROOT / "examples" / "tiny" / "base.safetensors")
    found = diagnosed(tmp_path, base, changed=change(base))
    assert kin(found) == {"changed": wanted}


def test_experts_of_the_embedded_example() -> None:
    found = taskmerge.doctor([f"{ROOT}/examples/tiny/*.safetensors"])
    assert set(kin(found).values()) == {"fine-tuning"}
    assert len(kin(found)) == 8
    assert warnings(found) == []
    assert found.exit_code == 0


def test_a_part_that_was_trained_anew_is_named(tmp_path: Path) -> None:
    base = load_file(ROOT / "examples" / "tiny" / "base.safetensors")
    expert = {**base, "visual.proj": torch.randn(base["visual.proj"].shape).half()}
    (said,) = warnings(diagnosed(tmp_path, base, changed=expert))
    assert "1 of its" in said
    assert "`visual.proj`" in said


def test_one_step_that_all_share_is_told(tmp_path: Path) -> None:
    """Experts of an instruction-tuned model, and the model before it as their base."""
    base = load_file(ROOT / "examples" / "tiny" / "base.safetensors")
    between = noised(0.1)(base)
    experts = {f"e{seed}": {**between, "visual.proj": between["visual.proj"] * (1 + seed / 50)} for seed in (1, 2)}
    said = " ".join(warnings(diagnosed(tmp_path, base, **experts)))
    assert "the task vectors of e1, e2 are nearly one" in said
    assert "another" not in " ".join(warnings(diagnosed(tmp_path, between, **experts)))
