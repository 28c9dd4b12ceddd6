"""From raw values to effective ones and back: straight-through bits, clamping, coefficients of tasks, relaxed masks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.adaptation.components import Component, Composed, Dense, Effective, Factored, Masked
from taskmerge.adaptation.learnables import OnWeights, fresh
from taskmerge.experts.tensors import Part, Unit
from taskmerge.methods.adaptive import (
    Block,
    Coefficients,
    Heads,
    Masks,
    Parts,
    Relaxed,
    Truncated,
    mask_rate,
    usual_start,
)  # fmt: skip
from taskmerge.methods.composed import Learned, Triplets
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors
from taskmerge.seeds import uniform_at

TASKS = ("a", "b", "c")


def unit(name: str, *shape: int) -> Unit:
    return Unit((Part(name, shape),), shape, "linear" if len(shape) > 1 else "vector")


def composed(component: Component, name: str, *shape: int) -> Composed:
    return Composed(unit(name, *shape), torch.zeros(math.prod(shape), dtype=torch.float64), component, ())


def vector(name: str, count: int = 5) -> Composed:
    return composed(Dense(torch.ones(3, count, dtype=torch.float64)), name, count)


def matrix(name: str, *counts: int) -> Composed:
    """So many components of each task, of a matrix 6 x 8."""
    factors = [
        Factors(torch.ones(6, k).double(), torch.arange(k, 0, -1).double(), torch.ones(k, 8).double()) for k in counts
    ]
    return composed(Factored(unit(name, 6, 8), (Triplets.of(factors),)), name, 6, 8)


def learnt(**parts: object) -> Parts:
    return Parts(learns={name.lower(): one for name, one in parts.items()})  # type: ignore[misc]  # learnables by name


# --- bits ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=6, max_size=6), st.floats(0.05, 50))
def test_bits_are_hard_forward_and_soft_backward(raw: list[float], temperature: float) -> None:
    """b = 1[β > 0] exactly; ∂b/∂β = σ′(β / temperature) / temperature."""
    parts = learnt(Masks=Masks(temperature=temperature))
    on_weights = fresh(parts, [matrix("w", 2, 2, 2)], 3, seed=0)
    beta = on_weights.values["masks/w"]
    with torch.no_grad():
        beta.copy_(torch.tensor(raw, dtype=torch.float64))
    gates = on_weights.effective(0).gates["w"]
    assert gates.tolist() == [1.0 if value > 0 else 0.0 for value in raw]
    ways = torch.arange(1, 7, dtype=torch.float64)
    on_weights.push(on_weights.effective(0), Effective(torch.zeros(1, 3).double(), {"w": ways}))
    soft = [1 / (1 + math.exp(-value / temperature)) for value in raw]
    wanted = [way * s * (1 - s) / temperature for way, s in zip(ways.tolist(), soft, strict=True)]
    torch.testing.assert_close(beta.grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-300)


def test_zero_is_off() -> None:
    on_weights = fresh(learnt(Masks=Masks()), [matrix("w", 1, 1, 1)], 3, seed=0)
    with torch.no_grad():
        on_weights.values["masks/w"].copy_(torch.tensor([0.0, 1e-300, -0.0], dtype=torch.float64))
    assert on_weights.effective(0).gates["w"].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("rank", "kept"),
    [
        (Rank("ratio", 1.0), [4, 2, 6]), (Rank("ratio", 0.5), [3, 2, 3]), (Rank("ratio", 0.08), [1, 1, 1]),
        (Rank("count", 2), [2, 2, 2]), (Rank("energy", 0.5), [1, 1, 2]), (Rank("energy", 1.0), [4, 2, 6]),
    ],
)  # fmt: skip
def test_components_within_the_rank_are_on_at_the_start(rank: Rank, kept: list[int]) -> None:
    """A rank is of the full rank, here 6, whatever a task has of it; bits start a tenth from their flip."""
    on_weights = fresh(learnt(Masks=Masks(kept=rank)), [matrix("w", 4, 2, 6), vector("v")], 3, seed=0)
    beta = on_weights.values["masks/w"]
    assert beta.abs().tolist() == pytest.approx([0.1] * 12, rel=1e-7)
    assert [int((part > 0).sum()) for part in beta.split([4, 2, 6])] == kept
    assert all(bool((part.diff() <= 0).all()) for part in beta.split([4, 2, 6]))
    assert "masks/v" not in on_weights.values


def test_a_task_without_components_has_no_bits() -> None:
    """A task matrix of zeros, wherever it stands."""
    for counts in ((0, 2, 2), (2, 0, 2), (2, 2, 0), (0, 0, 0)):
        for rank in (Rank("ratio", 0.5), Rank("energy", 0.9)):
            on_weights = fresh(learnt(Masks=Masks(kept=rank)), [matrix("w", *counts)], 3, seed=0)
            assert on_weights.values["masks/w"].numel() == sum(counts)
            bits = on_weights.learned(TASKS).masks["w"]
            assert bits.shape == (1, 3, max(counts))
            assert [bool(row.any()) for row in bits[0]] == [bool(count) for count in counts]


# --- coefficients ----------------------------------------------------------------------------------------------


def pushed(on_weights: OnWeights, grads: Tensor) -> Tensor | None:
    on_weights.push(on_weights.effective(0), Effective(grads))
    return on_weights.values["coefficients"].grad


def test_one_coefficient_a_task_has_the_sum_of_the_gradients() -> None:
    tensors = [vector(name) for name in "xyz"]
    on_weights = fresh(learnt(Coefficients=Coefficients(layout="task", start=0.4)), tensors, 3, seed=0)
    assert on_weights.values["coefficients"].tolist() == pytest.approx([0.4] * 3, rel=1e-7)
    assert torch.equal(on_weights.effective(0).coefficients, on_weights.values["coefficients"].expand(3, 3))
    grads = torch.arange(9.0).double().view(3, 3)
    assert torch.equal(pushed(on_weights, grads), grads.sum(0))
    assert on_weights.learned(TASKS).coefficients.keys() == set("xyz")


def test_clamped_coefficients_have_no_gradient_outside() -> None:
    on_weights = fresh(learnt(Coefficients=Coefficients(clamped=True)), [vector("x")], 3, seed=0)
    with torch.no_grad():
        on_weights.values["coefficients"].copy_(torch.tensor([[-0.1, 0.5, 1.1]]))
    assert on_weights.effective(0).coefficients.tolist() == [[0.0, 0.5, 1.0]]
    assert pushed(on_weights, torch.ones(1, 3).double()).tolist() == [[0.0, 1.0, 0.0]]
    assert on_weights.learned(TASKS).coefficients["x"].tolist() == [0.0, 0.5, 1.0]


def test_what_is_learnt_of_float64_is_written_as_float32() -> None:
    on_weights = fresh(learnt(Coefficients=Coefficients(start=0.1)), [vector("x")], 3, seed=0)
    assert on_weights.values["coefficients"].dtype == torch.float64
    assert on_weights.learned(TASKS).coefficients["x"].dtype == torch.float32


def test_a_start_is_taken_as_it_is() -> None:
    start = torch.arange(6.0).view(2, 3)
    learned = Learned(TASKS, {"y": start[1], "x": start[0]})
    on_weights = fresh(learnt(Coefficients=Coefficients()), [vector("x"), vector("y")], 3, seed=0, start=learned)
    assert torch.equal(on_weights.values["coefficients"].detach(), start.double())


def test_the_usual_starts() -> None:
    plain, mean = learnt(Coefficients=Coefficients()), {"origin": "mean", "components": Truncated(Rank("ratio", 0.1))}
    assert [usual_start(plain, tasks) for tasks in (1, 13, 14, 20)] == [0.3, 0.3, 0.1, 0.1]
    assert usual_start(replace(plain, **mean), 20) == 1.0
    assert usual_start(replace(plain, origin="mean"), 8) == 0.3
    assert usual_start(learnt(Coefficients=Coefficients(start=0.0)), 8) == 0.0


def test_what_is_not_trained_keeps_its_place_and_its_start() -> None:
    parts = learnt(Coefficients=Coefficients(start=2.3), Masks=Masks(kept=Rank("count", 1)), Heads=Heads())
    masks = parts.trained(("masks",))
    assert masks.learns.keys() == {"masks"}
    assert masks.fixed.keys() == {"coefficients"}
    assert masks.of(Coefficients) is None
    on_weights = fresh(masks, [matrix("w", 2, 2, 2)], 3, seed=0)
    assert on_weights.values["coefficients"].flatten().tolist() == pytest.approx([2.3] * 3, rel=1e-7)
    assert not on_weights.values["coefficients"].requires_grad
    coefficients = parts.trained(("coefficients",))
    on_weights = fresh(coefficients, [matrix("w", 2, 2, 2)], 3, seed=0)
    assert not on_weights.values["masks/w"].requires_grad
    assert on_weights.effective(0).gates["w"].tolist() == [1, 0, 1, 0, 1, 0]
    assert parts.trained(("both",)).learns.keys() == {"coefficients", "masks"}
    heads = parts.trained(("heads",))
    assert heads.fixed.keys() == {"coefficients", "masks"}
    assert not heads.shapes_weights
    assert not replace(parts, learns={"block": Block()}).shapes_weights


def test_the_rate_of_masks_lets_bits_flip_within_the_horizon() -> None:
    assert [mask_rate(updates) for updates in (0, 1, 100, 1000, 10_000)] == [1.0, 1.0, 0.01, 1e-3, 1e-3]


# --- relaxed masks ---------------------------------------------------------------------------------------------


def relaxed(seed: int, temperature: float = 0.5) -> OnWeights:
    rows = torch.randn(3, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = learnt(Coefficients=Coefficients(), Relaxed=Relaxed(temperature=temperature, start=1.0))
    return fresh(parts, [composed(Masked(rows), "w", 400)], 3, seed=seed)


def test_a_relaxed_mask_is_the_concrete_distribution_over_its_mean() -> None:
    """σ((m + logit u) / τ) / mean, u a function of seed, tensor and update."""
    on_weights = relaxed(seed=3)
    gates = on_weights.effective(7).gates["w"].detach()
    uniform = uniform_at(3, "relaxed/w", "update 7", 0, 400).double()
    mask = torch.sigmoid((1.0 + torch.log(uniform) - torch.log1p(-uniform)) / 0.5)
    torch.testing.assert_close(gates, mask / mask.mean(), rtol=1e-12, atol=1e-12)
    assert float(gates.mean()) == pytest.approx(1)
    assert torch.equal(on_weights.effective(7).gates["w"], gates)
    assert not torch.equal(on_weights.effective(8).gates["w"], gates)
    assert not torch.equal(relaxed(seed=4).effective(7).gates["w"], gates)


def test_the_gradient_of_a_relaxed_mask() -> None:
    """Pushed back through the draw and its mean, against automatic differentiation of the whole."""
    on_weights = relaxed(seed=3)
    raw, one = on_weights.values["relaxed/w"], on_weights.composed[0]
    grad = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    effective = on_weights.effective(2)
    whole = (effective.coefficients[0][:, None] * one.component.rows * effective.gates["w"]).sum(0) @ grad
    wanted = torch.autograd.grad(whole, [raw, on_weights.values["coefficients"]])
    effective = on_weights.effective(2)
    with torch.no_grad():
        of_tasks, of_gates = one.component.pull(grad, effective.coefficients[0], effective.gates["w"])
    on_weights.push(effective, Effective(of_tasks[None], {"w": of_gates}))
    torch.testing.assert_close(raw.grad, wanted[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(on_weights.values["coefficients"].grad, wanted[1], rtol=1e-10, atol=1e-13)
