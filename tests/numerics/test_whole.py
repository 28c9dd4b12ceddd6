"""All singular values with the leading triplets: as near to float64 as promised, whatever shape and spectrum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.errors import BadNumber
from taskmerge.numerics.spectral import energy_rank
from taskmerge.numerics.tridiagonal import values_and_top
from taskmerge.numerics.whole import whole


def with_values(m: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, len(values), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64)).Q
    return (left * values) @ right.mT


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40), n=st.integers(1, 40), k=st.integers(0, 40), steep=st.floats(0, 3.5),
    wide=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_decomposition_in_float64(m: int, n: int, k: int, steep: float, wide: bool, seed: int) -> None:
    r = min(m, n)
    exact = with_values(m, n, torch.logspace(0, -steep, r, dtype=torch.float64), seed)
    matrix = exact if wide else exact.float()
    found = whole(matrix, k)
    s = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(found.values, s, rtol=1e-5, atol=0)
    assert energy_rank(found.values, 0.95) == energy_rank(s, 0.95)
    kept = min(k, r)
    product = (found.factors.u * found.factors.s) @ found.factors.vt
    missed = torch.linalg.matrix_norm(matrix.double() - product.double())  # values may tie: errors are compared
    assert float(missed) <= float(s[kept:].norm()) + 2e-6 * float(s.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e15])
def test_no_size_is_too_small_or_too_large(dtype: torch.dtype, scale: float) -> None:
    matrix = (with_values(20, 12, torch.logspace(0, -2, 12, dtype=torch.float64)) * scale).to(dtype)
    s = torch.linalg.svdvals(matrix.double() / scale) * scale
    found = whole(matrix, 4)
    torch.testing.assert_close(found.values, s, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.factors.s.double(), s[:4], rtol=1e-5, atol=0)


def test_what_rounding_decides_is_no_component() -> None:
    low = with_values(30, 25, torch.tensor([3.0, 2.0, 1.0]).double())
    assert len(whole(low.float(), 10).values) <= 25
    assert len(whole(low, 10).values) == 3
    assert len(whole(low, 10).factors.s) == 3
    zero = whole(torch.zeros(5, 4), 3)
    assert len(zero.values) == 0
    assert zero.factors.u.shape == (5, 0)
    assert zero.factors.vt.shape == (0, 4)


def test_values_alone_are_those_beside_vectors() -> None:
    matrix = with_values(30, 25, torch.logspace(0, -3, 25, dtype=torch.float64)).float()
    alone, beside = whole(matrix, 0), whole(matrix, 25)
    assert torch.equal(alone.values, beside.values)
    assert alone.factors.u.shape == (30, 0)
    assert len(beside.factors.s) == 25


def test_equal_values_and_bad_numbers() -> None:
    found = whole(torch.eye(9), 4)
    assert found.values.tolist() == pytest.approx([1.0] * 9)
    assert len(found.factors.s) == 4
    with pytest.raises(BadNumber):
        whole(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (7, 0), (30, 3), (30, 30)])
def test_eigenvalues_and_leading_vectors(n: int, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    half = torch.randn(n, n, generator=generator, dtype=dtype)
    symmetric = half @ half.mT
    values, vectors = values_and_top(torch.tril(symmetric), k)
    close = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(values, torch.linalg.eigvalsh(symmetric).flip(0), **close)
    assert vectors.shape == (k, n)
    torch.testing.assert_close(symmetric @ vectors.mT, vectors.mT * values[:k], **close)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(k, dtype=dtype), **close)
