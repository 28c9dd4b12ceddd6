"""Concrete subspace learning: what is drawn, what is written of it and formed again, and what looks at which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_cases import TASKS, State, adapt, assembled, clip_suite, doubles
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import taskmerge
from taskmerge.adaptation import running
from taskmerge.adaptation.components import Composed, Effective, Masked
from taskmerge.adaptation.learnables import OnWeights, fresh
from taskmerge.checkpoint.learned import read_learned
from taskmerge.errors import UsageError
from taskmerge.experts.tensors import Part, Unit
from taskmerge.methods.adaptive import Coefficients, Parts, Relaxed
from taskmerge.methods.adaptive_registry import find_adaptive
from taskmerge.seeds import uniform_at
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite
from taskmerge.workflows.rebuild import rebuild

LOUD: dict[str, Any] = {"method": "concrete", "iterations": 3, "mask_lr": 0.5}
"""Three updates after which masks are far from even odds."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("concrete"))


@pytest.fixture(scope="module")
def folder(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an adaptation writes."""
    output = tmp_path_factory.mktemp("adapted") / "out"
    adapt(suite, output, **LOUD)
    return output


def learnable(
    counts: Mapping[str, int], temperature: float = 0.5, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> OnWeights:
    """Coefficients and a mask of tensors with so many entries, logits at 0."""
    parts = Parts(learns={"relaxed": Relaxed(temperature=temperature), "coefficients": Coefficients()})
    made = []
    for name, count in counts.items():
        rows = torch.randn(3, count, generator=torch.Generator().manual_seed(count), dtype=dtype)
        unit = Unit((Part(name, (count,)),), (count,), "vector")
        made.append(Composed(unit, torch.zeros(count, dtype=dtype), Masked(rows), ()))
    return fresh(parts, made, 3, seed)


def at(on_weights: OnWeights, name: str, logits: Tensor) -> OnWeights:
    """The same with these logits."""
    with torch.no_grad():
        on_weights.values[f"relaxed/{name}"].copy_(logits)
    return on_weights


def noise(name: str, when: str, count: int, seed: int = 0) -> Tensor:
    uniform = uniform_at(seed, f"relaxed/{name}", when, 0, count).double().clamp(min=2.0**-24)
    return torch.log(uniform) - torch.log1p(-uniform)


# --- draws -----------------------------------------------------------------------------------------------------


def test_draws_are_of_the_concrete_distribution() -> None:
    """An entry is above a half as often as a coin of σ(logit) falls; over its mean the mask sums to its count."""
    for logit in (-1.0, 0.0, 2.0):
        on_weights = at(learnable({"w": 20_000}), "w", torch.full((20_000,), logit))
        drawn = on_weights.effective(5).gates["w"].detach()
        assert float(drawn.mean()) == pytest.approx(1, rel=1e-12)
        by_hand = torch.sigmoid((logit + noise("w", "update 5", 20_000)) / 0.5)
        torch.testing.assert_close(drawn, by_hand / by_hand.mean(), rtol=1e-12, atol=0)
        share = float((by_hand > 0.5).double().mean())
        assert share == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.015)


def test_noise_depends_on_seed_tensor_update_and_entry_alone() -> None:
    """Not on what else is learnt, on the order, on how many entries there are, on values, or on precision."""

    def order(on_weights: OnWeights, update: int = 4) -> list[int]:
        return on_weights.effective(update).gates["w"].detach()[:50].argsort().tolist()

    found = order(learnable({"w": 50}))
    assert order(learnable({"v": 9, "w": 50, "z": 3})) == found
    assert order(learnable({"w": 120, "v": 9})) == found
    assert order(learnable({"w": 50}, temperature=2.0)) == found
    assert order(learnable({"w": 50}, dtype=torch.float32)) == found
    assert order(at(learnable({"w": 50}), "w", torch.full((50,), 0.7))) == found
    assert order(learnable({"w": 50}), update=5) != found
    assert order(learnable({"w": 50}, seed=1)) != found
    other = learnable({"v": 50}).effective(4).gates["v"].detach()
    assert other.argsort().tolist() != found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=40), st.integers(0, 99))
def test_at_temperature_0_a_draw_is_of_bits(logits: list[float], update: int) -> None:
    """1[logit + noise > 0] over its mean; where nothing is above 0 the largest entry has it all."""
    raw = torch.tensor(logits, dtype=torch.float64)
    on_weights = at(learnable({"w": len(raw)}, temperature=1e-9), "w", raw)
    sums = raw + noise("w", f"update {update}", len(raw))
    bits = (sums > 0).double() if bool((sums > 0).any()) else (sums == sums.max()).double()
    drawn = on_weights.effective(update).gates["w"].detach()
    torch.testing.assert_close(drawn, bits / bits.mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 0.5, 50.0])
@pytest.mark.parametrize("logit", [-1e4, -30.0, 0.0, 1e4])
def test_no_draw_is_without_a_number(logit: float, temperature: float, dtype: torch.dtype) -> None:
    """However certain a mask is of nothing: the mean that it is divided by is never 0."""
    on_weights = at(learnable({"w": 30}, temperature, dtype=dtype), "w", torch.full((30,), logit))
    for update in range(5):
        effective = on_weights.effective(update)
        assert float(effective.gates["w"].detach().mean()) == pytest.approx(1, rel=1e-5)
        on_weights.push(effective, Effective(torch.zeros(1, 3, dtype=dtype), {"w": torch.ones(30, dtype=dtype)}))
    grad = on_weights.values["relaxed/w"].grad
    assert grad is not None
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("logit", [-80.0, -1.0, 0.0, 3.0])
def test_a_tensor_of_one_entry_has_no_mask(logit: float) -> None:
    """Over its mean it is 1, and its gradient is 0 without a rounding error that Adam would make a step of."""
    on_weights = at(learnable({"w": 1}, dtype=torch.float32), "w", torch.tensor([logit]))
    for update in range(20):
        effective = on_weights.effective(update)
        assert effective.gates["w"].tolist() == [1.0]
        on_weights.push(effective, Effective(torch.zeros(1, 3), {"w": torch.tensor([3.7])}))
    grad = on_weights.values["relaxed/w"].grad
    assert grad is not None
    assert grad.tolist() == [0.0]
    assert on_weights.settled().gates["w"].tolist() == [1.0]


# --- what settles ----------------------------------------------------------------------------------------------


def test_bits_are_a_draw_of_its_own() -> None:
    """1[logit + noise > 0] over its mean, by noise that no update had; the same at every look."""
    raw = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    on_weights = at(learnable({"w": 400}, seed=3), "w", raw)
    bits = raw + noise("w", "final", 400, seed=3) > 0
    gates = on_weights.settled().gates["w"]
    assert torch.equal(gates, bits.double() / (int(bits.sum()) / 400))
    assert not gates.requires_grad
    assert torch.equal(on_weights.settled().gates["w"], gates)
    learned = on_weights.learned(TASKS)
    assert torch.equal(learned.masks["w"], bits.view(1, 1, 400))
    assert learned.shares["w"] == int(bits.sum()) / 400


def test_where_nothing_is_preferred_all_entries_are_on() -> None:
    """At the start; where no gradient ever came; and where nothing is drawn."""
    for logits in (torch.zeros(40), torch.full((40,), -3.0), torch.full((40,), 2.0), torch.linspace(-99, -98, 40)):
        on_weights = at(learnable({"w": 40}), "w", logits)
        assert on_weights.settled().gates["w"].tolist() == [1.0] * 40
        assert bool(on_weights.learned(TASKS).masks["w"].all())


def test_what_is_kept_on_average_is_told() -> None:
    on_weights = at(learnable({"v": 10, "w": 30}), "w", torch.full((30,), 50.0))
    assert on_weights.kept() == pytest.approx((5 + 30) / 40)


# --- what is written -------------------------------------------------------------------------------------------


def task_vectors(suite: Suite, name: str) -> Tensor:
    """θ_t - θ₀ of one tensor, [T, *shape], in float64."""
    base, *experts = (doubles(suite.folder / f"{one}.safetensors")[name] for one in ("base", *TASKS))
    return torch.stack(experts) - base


def by_hand(suite: Suite, folder: Path) -> State:
    """The base + m / mean(m) Σ_t λ_t τ_t, from the files alone, in float64."""
    coefficients, packed = load_file(folder / "coefficients.safetensors"), load_file(folder / "masks.safetensors")
    found = {}
    for name, origin in doubles(suite.folder / "base.safetensors").items():
        step = torch.zeros_like(origin)
        for scale, vector in zip(coefficients[name].double(), task_vectors(suite, name), strict=True):
            step += scale * vector
        bits = np.unpackbits(packed[name].numpy().reshape(-1), count=origin.numel())
        mask = torch.from_numpy(bits).double().view(origin.shape)
        found[name] = origin + mask / mask.mean() * step
    return found


def test_the_written_model_is_the_formula(suite: Suite, folder: Path) -> None:
    wanted, model = by_hand(suite, folder), load_file(folder / "model.safetensors")
    assert wanted.keys() == model.keys()
    for name, tensor in model.items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)
    shares = read_learned(folder).shares
    assert 0 < min(shares.values()) < 0.7
    assert any(0.2 < share < 0.8 for share in shares.values())


def test_made_again_it_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    model = folder / "model.safetensors"
    rebuild(folder, output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()
    assert taskmerge.verify(model).same_file


def test_the_run_ends_with_the_weights_that_are_written(suite: Suite, tmp_path: Path) -> None:
    live = assembled(suite, tmp_path / "out", goes_on=True, **LOUD).live()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(live[name], tensor, rtol=1e-5, atol=1e-6)


def test_looks_at_held_out_items_see_bits(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry of a tensor is the base's, or away from it by one factor of Σ_t λ_t τ_t."""
    name, factors = "visual.conv1.weight", list[Tensor]()
    base, step = doubles(suite.folder / "base.safetensors")[name], 0.3 * task_vectors(suite, name).sum(0)
    look = running.agreements

    def agreements(sides: Any, *rest: Any) -> dict[str, float]:
        live = dict(sides[0].module.named_parameters())[name].detach().double()
        factors.append(((live - base) / step)[step.abs() > 0.02])
        return look(sides, *rest)

    monkeypatch.setattr(running, "agreements", agreements)
    adapt(suite, tmp_path / "out", stop="agreement", every=1, train=("relaxed",), **LOUD)
    assert len(factors) == 5  # at the start, after three updates, and of what is written
    for own in factors:
        on = own[own > 0.5]
        torch.testing.assert_close(on, on[:1].expand_as(on), rtol=1e-4, atol=0)
        assert bool((own[own <= 0.5].abs() < 1e-4).all())
    assert all(bool((own < 0.5).any()) for own in factors[1:4])


# --- what is learnt --------------------------------------------------------------------------------------------


def test_concrete_task_arithmetic_leaves_coefficients(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "out", train=("relaxed",), **LOUD)
    learned = read_learned(tmp_path / "out")
    assert all(row.tolist() == pytest.approx([0.3] * 3, rel=1e-7) for row in learned.coefficients.values())
    assert learned.masks.keys() == learned.coefficients.keys()


def test_coefficients_alone_are_adamerging(suite: Suite, tmp_path: Path) -> None:
    adapt(suite, tmp_path / "concrete", train=("coefficients",), **LOUD)
    adapt(suite, tmp_path / "adamerging", method="adamerging", iterations=3)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("concrete", "adamerging"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not (tmp_path / "concrete" / "masks.safetensors").exists()


def test_the_defaults_are_those_of_the_reference() -> None:
    parts = find_adaptive("concrete").bound({"coefficient": None, "temperature": 0.5})
    relaxed = parts.of(Relaxed)
    assert isinstance(relaxed, Relaxed)
    assert (relaxed.temperature, relaxed.start) == (0.5, 0.0)
    assert (parts.iterations, parts.batch_size, parts.updates, parts.objective) == (1000, 16, "joint", "entropy")
    assert AdaptSpec(method="concrete").rates(parts, 1000) == {"relaxed": 1e-3, "coefficients": 1e-3}
    assert AdaptSpec(method="concrete", mask_lr=0.1, lr=0.2).rates(parts, 9) == {"relaxed": 0.1, "coefficients": 0.2}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"method": "concrete", "rank": 0.2}, "--rank"),
        ({"method": "adarank", "with_": "concrete"}, "--with"),
        ({"method": "cart_plus", "with_": "concrete"}, "--with"),
    ],
)
def test_entries_of_components_have_no_mask(options: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError, match="whole task vectors") as error:
        AdaptSpec(**options).parts()
    assert error.value.where == where
    assert error.value.exit_code == 2
