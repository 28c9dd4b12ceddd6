"""Gram matrices and eigenpairs through LAPACK's C pointers: values, layouts, failures, threads."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info
from torch import Tensor

from taskmerge.numerics import lapack

EPS = {torch.float32: 1e-6, torch.float64: 1e-14}
PROPERTY = settings(max_examples=40, deadline=None)


def gram_by_hand(matrix: np.ndarray) -> np.ndarray:
    """Inner products of the columns (tall) or rows (wide), one by one in float64."""
    vectors = matrix.T if matrix.shape[0] >= matrix.shape[1] else matrix
    return np.array([[sum(x * y for x, y in zip(a, b, strict=True)) for b in vectors] for a in vectors])


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same matrix as a plain, transposed, or sliced view."""
    if layout == "plain":
        return matrix.contiguous()
    if layout == "transposed":
        return matrix.mT.contiguous().mT
    wide = torch.full((matrix.shape[0], matrix.shape[1] + 3), float("nan"), dtype=matrix.dtype)
    wide[:, 1:-2] = matrix
    return wide[:, 1:-2]


@PROPERTY
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["plain", "transposed", "sliced"]),
    seed=st.integers(0, 99),
)
def test_gram_holds_the_inner_products_of_the_smaller_side(rows, columns, dtype, layout, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = lapack.gram(laid_out(matrix, layout))
    expected = np.tril(gram_by_hand(matrix.double().numpy()))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), expected, atol=20 * EPS[dtype])


@PROPERTY
@given(
    n=st.integers(1, 40),
    share=st.floats(0.01, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_top_eigenpairs_solve_the_eigenvalue_equation(n, share, dtype, seed):
    k = max(1, int(share * n))
    factor = torch.randn(n, n + 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    symmetric = (factor @ factor.mT).to(dtype)
    values, vectors = lapack.top_eigenpairs(torch.tril(symmetric), k)
    expected = np.linalg.eigvalsh(symmetric.double().numpy())[::-1][:k]
    tolerance = 50 * EPS[dtype] * expected[0]
    np.testing.assert_allclose(values.double().numpy(), expected, atol=tolerance)
    image = vectors.double() @ symmetric.double()
    np.testing.assert_allclose(image.numpy(), (values[:, None] * vectors).double().numpy(), atol=tolerance)
    gram = (vectors.double() @ vectors.double().mT).numpy()
    np.testing.assert_allclose(gram, np.eye(k), atol=100 * EPS[dtype])


@pytest.mark.parametrize("k", [3, 29])
def test_both_solvers_are_in_use_and_agree(k):
    factor = torch.randn(30, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, vectors = lapack.top_eigenpairs(lapack.gram(factor), k)
    same, others = lapack._all_eigenpairs(lapack.gram(factor), k)
    torch.testing.assert_close(values, same, rtol=1e-12, atol=0)
    torch.testing.assert_close((vectors * others).sum(1).abs(), torch.ones(k, dtype=torch.float64))


@pytest.mark.parametrize(("info", "found"), [(3, 2), (-4, 2), (0, 1)])
def test_a_failed_solve_is_an_error(monkeypatch, info, found):
    def failing(*arguments):
        arguments[11]._obj.value = found
        arguments[-1]._obj.value = info

    monkeypatch.setattr(lapack, "_workspace", lambda dtype, n: (26 * n, 10 * n))
    monkeypatch.setattr(lapack, "routine", lambda name, dtype: failing)
    with pytest.raises(lapack.LapackError, match=f"info {info}"):
        lapack.top_eigenpairs(torch.eye(20), 2)


def test_a_failed_divide_and_conquer_is_the_same_error(monkeypatch):
    def failing(symmetric):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.raises(lapack.LapackError, match="no convergence"):
        lapack.top_eigenpairs(torch.eye(4), 4)


def test_without_32_bit_lapack_torch_does_the_work(monkeypatch):
    matrix = torch.randn(60, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values, vectors = lapack.top_eigenpairs(lapack.gram(matrix), 3)
    monkeypatch.setattr(lapack, "_capsule_name", lambda capsule: b"void (char *, npy_int64 *)")
    lapack.routine.cache_clear()
    try:
        assert lapack.routine("syrk", torch.float64) is None
        torch.testing.assert_close(lapack.gram(matrix), torch.tril(matrix.mT @ matrix))
        same, others = lapack.top_eigenpairs(lapack.gram(matrix), 3)
    finally:
        lapack.routine.cache_clear()
    torch.testing.assert_close(values, same)
    torch.testing.assert_close((vectors * others).sum(1).abs(), torch.ones(3, dtype=torch.float64))


def test_the_interpreter_lock_is_free_during_a_solve():
    matrix = torch.randn(700, 700, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    symmetric, ticks, done = lapack.gram(matrix), [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.perf_counter()
    lapack.top_eigenpairs(symmetric, 20)
    end = time.perf_counter()
    done.set()
    ticking.join()
    assert sum(start < moment < end for moment in ticks) >= 5


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_single_threaded_limits_and_restores(monkeypatch):
    lapack.gram(torch.eye(2))
    threads, before = torch.get_num_threads(), blas_threads()
    torch.set_num_threads(2)
    try:
        with lapack.single_threaded():
            assert (torch.get_num_threads(), blas_threads()) == (1, {1})
        assert (torch.get_num_threads(), blas_threads()) == (2, before)
        with pytest.raises(KeyError), lapack.single_threaded():
            raise KeyError
        assert (torch.get_num_threads(), blas_threads()) == (2, before)
    finally:
        torch.set_num_threads(threads)
