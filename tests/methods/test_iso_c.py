"""Iso-C against its definition, and the identities it must obey."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectral_cases import (
    COEFFICIENTS,
    EXACT,
    PROPERTY,
    Case,
    assert_near,
    cases,
    conditioning,
    embedded,
    with_spectrum,
)
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.iso_c import iso_c
from taskmerge.methods.registry import find
from taskmerge.numerics.spectral import TaskMatrices

NEGLIGIBLE = 1e-9


def by_hand(arrays: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(arrays[0])
    for array in arrays:
        total += array
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    flat = np.zeros_like(total)
    for i in range(len(s)):
        if s[i] > NEGLIGIBLE * s[0]:
            flat += s.sum() / len(s) * np.outer(u[:, i], vt[i])
    return flat


def posed(case: Case) -> float:
    """The least singular value of the sum that counts, in units of the largest task vector."""
    total = sum(case.arrays)
    if not total.any():
        return 1.0
    size = max(np.linalg.norm(array, 2) for array in case.arrays)
    values = np.linalg.svd(total, compute_uv=False)
    assume(not np.any((values > 1e-14 * values[0]) & (values < 1e-4 * values[0])))  # is it of that rank or not?
    return conditioning(total) * min(1.0, values[0] / size)


@PROPERTY
@given(cases())
def test_iso_c_is_its_definition(case: Case) -> None:
    condition = posed(case)
    assume(condition > 1e-3)
    before = case.stack.clone()
    result = iso_c(case.matrices)
    assert result.dtype == case.stack.dtype
    assert torch.equal(case.stack, before)
    assert_near(result, by_hand(case.arrays), case.tolerance(condition))


@PROPERTY
@given(cases(dtypes=EXACT), st.floats(0.1, 3.0))
def test_the_spectrum_is_flat(case: Case, coefficient: float) -> None:
    condition = posed(case)
    assume(condition > 1e-3)
    total = np.linalg.svd(sum(case.arrays), compute_uv=False)
    rank = int((total > NEGLIGIBLE * total[0]).sum()) if total.any() else 0
    expected = torch.zeros(case.full).double()
    expected[:rank] = coefficient * total.sum() / case.full
    assert_near(torch.linalg.svdvals(iso_c(case.matrices, coefficient=coefficient).double()), expected, 1e-5)


@pytest.mark.parametrize("smallest", [1e-3, 1e-5])
def test_weak_directions_count_as_much_as_strong_ones(smallest: float) -> None:
    """A thousandth of the largest singular value is no null direction here, unlike in a whitening."""
    values = torch.logspace(0, np.log10(smallest), 16, dtype=torch.float64)
    matrix = with_spectrum((40, 16), values, torch.Generator().manual_seed(4)).float()
    flat = torch.linalg.svdvals(iso_c(TaskMatrices(matrix[None])).double())
    assert_near(flat, torch.full((16,), float(values.mean()), dtype=torch.float64), 1e-4)


@pytest.mark.parametrize("dtype", EXACT)
def test_null_directions_stay_null(dtype: torch.dtype) -> None:
    """Small integers multiply exactly: the sum has rank 4 exactly, and the mean counts the eight zeros."""
    generator = torch.Generator().manual_seed(7)
    down, up = (torch.randint(-4, 5, shape, generator=generator).double() for shape in [(2, 12, 2), (2, 2, 15)])
    stack = down @ up
    result = iso_c(TaskMatrices(stack.to(dtype)))
    assert_near(result, by_hand([row.numpy() for row in stack]), 1000 * torch.finfo(dtype).eps)


def test_task_vectors_that_cancel_give_zero() -> None:
    one = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    assert not iso_c(TaskMatrices(torch.stack([one, -one]))).any()


@PROPERTY
@given(cases(dtypes=EXACT), st.data())
def test_a_zero_task_vector_changes_nothing(case: Case, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, case.tasks))
    more = torch.cat([case.stack[:place], torch.zeros_like(case.stack[:1]), case.stack[place:]])
    assert torch.equal(iso_c(TaskMatrices(more)), iso_c(case.matrices))


@PROPERTY
@given(cases(dtypes=EXACT), COEFFICIENTS)
def test_scaling_transposing_and_reordering_carry_over(case: Case, coefficient: float) -> None:
    condition = posed(case)
    assume(condition > 1e-3)
    expected, tolerance = iso_c(case.matrices), case.tolerance(condition)
    assert_near(iso_c(TaskMatrices(4 * case.stack)) / 4, expected, tolerance)
    assert_near(iso_c(TaskMatrices(case.stack.mT.contiguous())).mT, expected, tolerance)
    assert_near(iso_c(TaskMatrices(case.stack.flip(0))), expected, tolerance)
    assert_near(iso_c(case.matrices, coefficient=coefficient), coefficient * expected.double(), tolerance)


@PROPERTY
@given(embedded())
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """The mean is over the values of the whole matrix: the core's own number of values would give more."""
    cores, left, right = case
    assume(conditioning(cores.sum(0).numpy()) > 1e-4)
    whole = left @ cores @ right.mT
    small = iso_c(TaskMatrices(cores, full=min(whole.shape[1:])))
    assert_near(left @ small @ right.mT, iso_c(TaskMatrices(whole)), 1e-8)


def test_other_tensors_are_averaged_and_weights_refused() -> None:
    declared = find("iso-c")
    assert declared.elsewhere is average
    assert declared.space == "delta"
    assert not declared.weighted
