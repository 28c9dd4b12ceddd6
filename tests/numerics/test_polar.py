"""Polar factors against float64 singular value decompositions: what is kept, dropped, and when."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.errors import BadNumber
from taskmerge.numerics import lapack
from taskmerge.numerics.polar import polar, polar_decomposition

PROPERTY = settings(max_examples=40, deadline=None)
SHAPES = [(1, 1), (1, 7), (7, 1), (12, 12), (40, 9), (9, 40)]
GOAL = {torch.float32: 3e-6, torch.float64: 1e-9}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with lapack.single_threaded():
        yield


def by_hand(matrix: Tensor, share: float) -> np.ndarray:
    """Σ p_i q_iᵀ over the singular values above `share` of the largest, in float64."""
    p, s, qt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    total = np.zeros(matrix.shape)
    for i, value in enumerate(s):
        if value >= share * s[0]:
            total += np.outer(p[:, i], qt[i])
    return total


def with_values(s: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, len(s), generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, len(s), generator=generator, dtype=torch.float64)).Q
    return (u * s.double()) @ v.mT


def off(found: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    least=st.sampled_from([1.0, 0.5, 0.05, 2e-3]),
    exponent=st.sampled_from([0, 0, -90, 90]),
    seed=st.integers(0, 99),
)
def test_it_is_the_nearest_partial_isometry(shape, dtype, least, exponent, seed):
    s = torch.logspace(0, float(np.log10(least)), min(shape), dtype=torch.float64)
    matrix = (with_values(s, *shape, seed) * 2.0**exponent).to(dtype)
    found = polar_decomposition(matrix)
    assert found.factor.dtype == found.s.dtype == dtype
    tolerance = GOAL[dtype] if least > 1e-2 else 100 * GOAL[dtype]  # the input's own rounding, over the least value
    assert off(found.factor, by_hand(matrix, 0)) <= tolerance
    assert found.kept == min(shape)
    np.testing.assert_allclose((found.s.double() * 2.0**-exponent).numpy(), s.numpy(), rtol=1e-3, atol=GOAL[dtype])
    assert torch.equal(polar(matrix), found.factor)
    turned = polar(matrix.mT.contiguous()).mT
    assert off(turned, found.factor.double().numpy()) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (10, 10)])
def test_weak_directions_are_dropped_and_parity_keeps_them(dtype, shape):
    s = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 2e-3, 5e-4, 1e-4])
    matrix = with_values(s, *shape, 1).to(dtype)
    tolerance = 3e-4 if dtype == torch.float32 else 1e-9
    found = polar_decomposition(matrix)
    assert found.kept == 8
    assert off(found.factor, by_hand(matrix, 1e-3)) <= tolerance
    kept = polar_decomposition(matrix, parity=True)
    assert kept.kept == 10
    assert off(kept.factor, by_hand(matrix, 0)) <= 3 * tolerance


def test_parity_takes_a_decomposition_where_the_gram_matrix_is_blind():
    s = torch.tensor([1.0, 0.5, 1e-7])
    matrix = with_values(s, 20, 3, 1)
    assert off(polar(matrix, parity=True), by_hand(matrix, 0)) <= 1e-8


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_deficient_matrices_give_a_partial_isometry_and_parity_a_whole_one(rank):
    matrix = with_values(torch.linspace(2, 1, rank), 12, 8, 2).float()
    found = polar_decomposition(matrix)
    assert found.kept == rank
    assert off(found.factor, by_hand(matrix, 1e-3)) <= 3e-6
    whole = polar_decomposition(matrix, parity=True)
    assert whole.kept == 8
    np.testing.assert_allclose((whole.factor.mT @ whole.factor).numpy(), np.eye(8), atol=1e-5)


def test_a_float32_matrix_is_as_good_as_its_float64_result_where_it_is_flat_and_where_it_is_not():
    for least in (0.5, 2e-3):
        matrix = with_values(torch.logspace(0, float(np.log10(least)), 40), 90, 40, 3).float()
        assert off(polar(matrix), polar(matrix.double()).numpy()) <= 1e-6


def test_zero_and_bad_matrices():
    found = polar_decomposition(torch.zeros(5, 3))
    assert torch.equal(found.factor, torch.zeros(5, 3))
    assert found.kept == 0
    assert torch.equal(found.s, torch.zeros(3))
    assert polar(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(BadNumber, match="NaN or infinity"):
        polar(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("parity", [False, True])
def test_a_failed_eigensolver_is_replaced(monkeypatch, parity):
    matrix = with_values(torch.tensor([1.0, 0.5, 5e-4]), 12, 3, 2)

    def failing(symmetric):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    found = polar_decomposition(matrix, parity=parity)
    assert off(found.factor, by_hand(matrix, 0 if parity else 1e-3)) <= 1e-10
    assert found.kept == (3 if parity else 2)


@pytest.mark.cuda
def test_a_device_gives_the_same_factor():
    matrix = with_values(torch.linspace(1, 0.1, 30), 50, 30, 4).float()
    assert off(polar(matrix.cuda()).cpu(), by_hand(matrix, 0)) <= 3e-6
