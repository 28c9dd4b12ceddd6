"""Coefficients from inner products against naive float64 fits, bounds against scipy's own optimiser, and what is told
to be unknown."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from taskmerge.recovery.moments import Moments
from taskmerge.recovery.solve import FORMS, Form, fit

COUNT = 400


def moments(origin: Tensor, experts: list[Tensor], merged: Tensor, rounding: float = 1e-20) -> Moments:
    """The sums that `measure` takes, from whole vectors in float64."""
    rows = torch.stack([origin, *(one - origin for one in experts), merged - origin])
    return Moments(rows @ rows.T, len(origin), rounding, {}, (0, 0))


def world(seed: int, experts: int) -> tuple[Tensor, list[Tensor]]:
    """A base and steps from it of lengths that differ, some of them alike."""
    drawn = torch.Generator().manual_seed(seed)
    base = torch.randn(COUNT, generator=drawn, dtype=torch.float64)
    common = torch.randn(COUNT, generator=drawn, dtype=torch.float64)
    return base, [
        base + 0.02 * (place + 1) * (torch.randn(COUNT, generator=drawn, dtype=torch.float64) + common)
        for place in range(experts)
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_free_forms_are_the_naive_least_squares(seed: int, count: int) -> None:
    base, experts = world(seed, count)
    merged = base + 0.1 * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    found = fit(moments(base, experts, merged), "least squares", based=True)
    columns = torch.stack([one - base for one in experts], dim=1)
    naive = torch.linalg.lstsq(columns, (merged - base)[:, None]).solution[:, 0]
    assert found.coefficients == pytest.approx(naive.tolist(), abs=1e-8)
    assert found.base == pytest.approx(1 - float(naive.sum()), abs=1e-8)
    left = columns @ naive - (merged - base)
    assert found.residual == pytest.approx(float(left.norm() / (merged - base).norm()), rel=1e-6)
    scaled = fit(moments(base, experts, merged), "scaled", based=True)
    columns = torch.stack([base, *experts], dim=1)
    naive = torch.linalg.lstsq(columns, merged[:, None]).solution[:, 0]
    assert (scaled.base, *scaled.coefficients) == pytest.approx(naive.tolist(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_without_a_base_weights_sum_to_one(seed: int, count: int) -> None:
    _, experts = world(seed, count)
    merged = experts[0] + 0.1 * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    about = moments(torch.stack(experts).mean(dim=0), experts, merged)
    found = fit(about, "least squares", based=False)
    last = torch.stack([one - experts[-1] for one in experts[:-1]], dim=1)
    naive = torch.linalg.lstsq(last, (merged - experts[-1])[:, None]).solution[:, 0]
    assert found.coefficients == pytest.approx([*naive.tolist(), 1 - float(naive.sum())], abs=1e-8)
    assert found.base is None
    scaled = fit(about, "scaled", based=False)
    naive = torch.linalg.lstsq(torch.stack(experts, dim=1), merged[:, None]).solution[:, 0]
    assert scaled.coefficients == pytest.approx(naive.tolist(), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from(["non-negative", "sum to one", "soup"]))
def test_bounded_forms_are_the_best_that_an_optimiser_finds(seed: int, count: int, form: Form) -> None:
    base, experts = world(seed, count)
    weights = np.random.default_rng(seed).normal(0.3, 0.5, count)
    merged = base + sum(float(w) * (one - base) for w, one in zip(weights, experts, strict=True))
    found = fit(moments(base, experts, merged), form, based=True)
    steps, step = torch.stack([one - base for one in experts], dim=1).numpy(), (merged - base).numpy()

    def left(values: np.ndarray) -> float:
        return float(np.square(steps @ values - step).sum() / np.square(step).sum())

    best = minimize(
        left, np.full(count, 1 / count), method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        bounds=None if form == "sum to one" else [(0, None)] * count,
        constraints=[] if form == "non-negative" else [{"type": "eq", "fun": lambda values: values.sum() - 1}],
    )  # fmt: skip
    assert left(np.array(found.coefficients)) <= left(best.x) + 1e-7
    assert found.residual**2 == pytest.approx(left(np.array(found.coefficients)), abs=1e-9)
    if form != "non-negative":
        assert sum(found.coefficients) == pytest.approx(1)
    if form != "sum to one":
        assert min(found.coefficients) >= 0


def test_equal_experts_are_told_and_share_what_they_have() -> None:
    base, experts = world(1, 4)
    experts[3] = experts[1]
    merged = base + 0.6 * (experts[1] - base) + 0.2 * (experts[0] - base)
    found = fit(moments(base, experts, merged), "least squares", based=True)
    assert found.unknown == ((1, 3),)
    assert found.coefficients == pytest.approx([0.2, 0.3, 0, 0.3], abs=1e-7)
    assert found.residual < 1e-7


def test_an_expert_that_is_a_mix_of_others_is_told_with_them() -> None:
    base, experts = world(2, 4)
    experts[2] = 0.5 * experts[0] + 0.5 * experts[1]
    found = fit(moments(base, experts, base + experts[3] - base), "least squares", based=True)
    assert found.unknown == ((0, 1, 2),)
    assert found.coefficients[3] == pytest.approx(1)


def test_the_base_among_the_experts_changes_nothing() -> None:
    base, experts = world(3, 2)
    found = fit(moments(base, [*experts, base.clone()], 0.5 * experts[0] + 0.5 * base), "least squares", based=True)
    assert found.unknown == ((2,),)
    assert found.coefficients == pytest.approx([0.5, 0, 0], abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("based", [True, False])
def test_one_expert_that_is_the_checkpoint(form: Form, based: bool) -> None:
    base, (expert,) = world(4, 1)
    found = fit(moments(base if based else expert, [expert], expert), form, based=based)
    assert found.coefficients == pytest.approx([1.0])
    assert found.residual == pytest.approx(0, abs=1e-7)
    assert found.base == (pytest.approx(0, abs=1e-9) if based else None)


def test_errors_are_those_of_many_draws() -> None:
    """The standard error beside a coefficient is how far it lies from the truth when noise is added again and again."""
    base, experts = world(5, 3)
    drawn = torch.Generator().manual_seed(0)
    truth = [0.2, 0.5, -0.1]
    plain = base + sum(w * (one - base) for w, one in zip(truth, experts, strict=True))
    found = [
        fit(
            moments(base, experts, plain + 0.01 * torch.randn(COUNT, generator=drawn, dtype=torch.float64)),
            "least squares", based=True,
        )
        for _ in range(300)
    ]  # fmt: skip
    off = np.array([one.coefficients for one in found]) - truth
    told = np.array([one.errors for one in found]).mean(axis=0)
    assert np.sqrt(np.square(off).mean(axis=0)) == pytest.approx(told, rel=0.15)


def test_as_many_coefficients_as_numbers_tell_nothing() -> None:
    base, experts = torch.zeros(2).double(), [torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()]
    found = fit(moments(base, experts, torch.tensor([3.0, 4.0]).double()), "least squares", based=True)
    assert found.ratio is None
    assert found.coefficients == pytest.approx([3, 4])
