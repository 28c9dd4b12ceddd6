"""Polar factors against float64 singular value decompositions: what is kept, dropped, and when."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.errors import BadNumber
from taskmerge.numerics import lapack
from taskmerge.numerics.polar import DROPPED_NOTE, SENSITIVE_NOTE, notes, polar

PROPERTY = settings(max_examples=40, deadline=None)
SHAPES = [(1, 1), (1, 7), (7, 1), (12, 12), (40, 9), (9, 40)]
GOAL = {torch.float32: 3e-6, torch.float64: 1e-9}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
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


def off(factor: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(factor.double().numpy() - expected) / np.linalg.norm(expected))


def allowed(dtype: torch.dtype, least: float) -> float:
    """The result's own rounding, and that of a float64 Gram matrix, whose least eigenvalue is `least` squared."""
    return GOAL[dtype] + 1e-15 / least**2


@PROPERTY
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    least=st.one_of(st.sampled_from([1.0, 0.5, 0.05]), st.floats(-5, -3).map(lambda power: 10**power)),
    exponent=st.sampled_from([0, 0, -90, 90]),
    seed=st.integers(0, 99),
)
def test_it_is_the_nearest_isometry_however_ill_conditioned(
    shape: tuple[int, int], dtype: torch.dtype, least: float, exponent: int, seed: int
) -> None:
    s = torch.logspace(0, float(np.log10(least)), min(shape), dtype=torch.float64)
    matrix = (with_values(s, *shape, seed) * 2.0**exponent).to(dtype)
    result = polar(matrix)
    assert result.factor.dtype == result.s.dtype == dtype
    assert off(result.factor, by_hand(matrix, 0)) <= allowed(dtype, least)
    assert result.kept == min(shape)
    values = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(result.s.double(), values, rtol=1e-3, atol=1e-6 * float(values[0]))
    turned = polar(matrix.mT.contiguous()).factor.mT
    assert off(turned, result.factor.double().numpy()) <= 2 * allowed(dtype, least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, 10), (10, 30), (10, 10)])
@pytest.mark.parametrize(
    ("weakest", "kept", "said"),
    [
        ([2e-2, 5e-3, 2e-3], 10, ()),
        ([2e-3, 5e-4, 1e-4], 10, (SENSITIVE_NOTE,)),
        ([2e-3, 5e-4, 3e-6], 10, (SENSITIVE_NOTE,)),
        ([2e-3, 2e-3, 1e-7], 9, (DROPPED_NOTE,)),
        ([1e-4, 0, 0], 8, (DROPPED_NOTE, SENSITIVE_NOTE)),
    ],
)
def test_what_is_above_numerical_rank_is_kept_and_the_rest_dropped(
    dtype: torch.dtype, shape: tuple[int, int], weakest: list[float], kept: int, said: tuple[str, ...]
) -> None:
    matrix = with_values(torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, *weakest]), *shape, 1).to(dtype)
    result = polar(matrix)
    assert result.kept == kept
    assert off(result.factor, by_hand(matrix, 1e-6)) <= 1e-6
    assert notes(result) == notes(result, polar(torch.eye(3)), polar(torch.zeros(3, 3))) == said


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_deficient_matrices_give_a_partial_isometry(rank: int) -> None:
    matrix = with_values(torch.linspace(2, 1, rank), 12, 8, 2).float()
    result = polar(matrix)
    assert result.kept == rank
    assert off(result.factor, by_hand(matrix, 1e-3)) <= 3e-6


def test_a_float32_matrix_is_as_good_as_its_float64_result_where_it_is_flat_and_where_it_is_not() -> None:
    for least in (0.5, 2e-3, 2e-5):
        matrix = with_values(torch.logspace(0, float(np.log10(least)), 40), 90, 40, 3).float()
        assert off(polar(matrix).factor, polar(matrix.double()).factor.numpy()) <= 1e-6


def test_zero_and_bad_matrices() -> None:
    result = polar(torch.zeros(5, 3))
    assert torch.equal(result.factor, torch.zeros(5, 3))
    assert result.kept == 0
    assert torch.equal(result.s, torch.zeros(3))
    assert polar(torch.zeros(0, 3)).factor.shape == (0, 3)
    with pytest.raises(BadNumber, match="NaN or infinity"):
        polar(torch.tensor([[1.0, float("nan")]]))


def test_a_failed_eigensolver_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_values(torch.tensor([1.0, 0.5, 1e-4, 1e-8]), 12, 4, 2)

    def failing(symmetric: Tensor) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    result = polar(matrix)
    assert off(result.factor, by_hand(matrix, 1e-6)) <= 1e-10
    assert result.kept == 3


@pytest.mark.cuda
def test_a_device_gives_the_same_factor() -> None:
    matrix = with_values(torch.linspace(1, 0.1, 30), 50, 30, 4).float()
    assert off(polar(matrix.cuda()).factor.cpu(), by_hand(matrix, 0)) <= 3e-6
