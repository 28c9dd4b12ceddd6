"""TSV-M against its definition, and the identities it must obey."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectral_cases import (
    COEFFICIENTS,
    EXACT,
    PROPERTY,
    STORED,
    Case,
    assert_near,
    cases,
    embedded,
    gap,
    nearly_shared,
    orthonormal,
    polar_factor,
    truncated,
    whitening,
    with_spectrum,
)
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.registry import find
from taskmerge.methods.truncated_task_arithmetic import truncated_task_arithmetic
from taskmerge.methods.tsv_m import tsv_m, whitened
from taskmerge.numerics.polar import DROPPED_NOTE, SENSITIVE_NOTE
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices

NEGLIGIBLE = 1e-9  # below this share of s_1 a singular value of an exactly deficient matrix is rounding


def columns(arrays: list[np.ndarray], full: int) -> tuple[np.ndarray, list[float], np.ndarray] | None:
    """U_cat, s_cat and V_cat, one component at a time; None if every task vector is zero."""
    left, values, right = [], [], []
    for array in arrays:
        u, s, vt = np.linalg.svd(array, full_matrices=False)
        for i in range(min(max(1, full // len(arrays)), len(s))):
            if s[i] > NEGLIGIBLE * s[0]:
                left.append(u[:, i])
                values.append(s[i])
                right.append(vt[i])
    return (np.array(left).T, values, np.array(right).T) if values else None


def by_hand(arrays: list[np.ndarray], full: int) -> np.ndarray:
    found = columns(arrays, full)
    total = np.zeros_like(arrays[0])
    if found is not None:
        left, values, right = polar_factor(found[0]), found[1], polar_factor(found[2])
        for i, value in enumerate(values):
            total += value * np.outer(left[:, i], right[:, i])
    return total


def well_posed(case: Case) -> float:
    """How well the result is defined: the least of the spectral gaps and the conditions of U_cat and V_cat."""
    found = columns(case.arrays, case.full)
    if found is None:
        return 1.0
    rank = max(1, case.full // case.tasks)
    for array in case.arrays:
        values = np.linalg.svd(array, compute_uv=False)[:rank]
        assume(not np.any((values > 1e-14 * values[0]) & (values < 1e-4 * values[0])))  # is it of that rank or not?
    gaps = min(gap(array, rank) for array in case.arrays)
    return gaps * min(whitening(found[0]), whitening(found[2]))


def tolerance(case: Case, posed: float) -> float:
    """The vectors' rounding, and that of a float64 Gram matrix, whose eigenvalues are squares."""
    return case.tolerance(posed) + 1e-15 / posed**2


@PROPERTY
@given(cases(STORED, decays=(0.6, 0.9)))
def test_tsv_m_is_its_definition(case: Case) -> None:
    posed = well_posed(case)
    assume(posed > 1e-4)
    before = case.stack.clone()
    result = tsv_m(case.matrices)
    assert result.dtype == case.stack.dtype
    assert torch.equal(case.stack, before)
    assert_near(result, by_hand(case.arrays, case.full), tolerance(case, posed), np.linalg.norm(case.arrays))


@PROPERTY
@given(nearly_shared(), st.sampled_from(EXACT))
def test_nearly_shared_directions_are_kept_and_noted(case: tuple[Tensor, float], dtype: torch.dtype) -> None:
    exact, share = case
    stack = exact.to(dtype)
    expected = by_hand([row.double().numpy() for row in stack], min(stack.shape[1:]))
    matrices = TaskMatrices(stack)
    assert whitened(matrices).notes == (SENSITIVE_NOTE,)
    rounding = 1e-15 / share**2 if dtype == torch.float64 else 5e-7 / share  # of the Gram matrix, of the vectors
    assert_near(tsv_m(matrices), expected, rounding + 1e-9, float(torch.linalg.vector_norm(exact)))


@PROPERTY
@given(nearly_shared(shares=(-9.0, -6.5)))
def test_shared_directions_are_dropped_and_noted(case: tuple[Tensor, float]) -> None:
    stack, _ = case
    expected = by_hand([row.numpy() for row in stack], min(stack.shape[1:]))
    assert whitened(TaskMatrices(stack)).notes == (DROPPED_NOTE,)
    assert_near(tsv_m(TaskMatrices(stack)), expected, 1e-7, float(torch.linalg.vector_norm(stack)))


@PROPERTY
@given(
    st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([(24, 24), (30, 13), (13, 30)]), st.sampled_from(EXACT)
)
def test_with_orthogonal_subspaces_it_is_truncated_task_arithmetic(
    seed: int, tasks: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = min(shape) // tasks
    left, right = (orthonormal(side, tasks * k, generator).split(k, dim=1) for side in shape)
    values = 0.8 ** torch.arange(k, dtype=torch.float64)
    stack = torch.stack([(u * values) @ v.mT for u, v in zip(left, right, strict=True)]).to(dtype)
    options = {"rank": Rank("count", k), "coefficient": 1.3}
    expected = truncated_task_arithmetic(TaskMatrices(stack), torch.ones(tasks).double(), **options)
    tolerance = max(1e-9, 200 * torch.finfo(dtype).eps)
    assert_near(tsv_m(TaskMatrices(stack), coefficient=1.3), expected, tolerance)


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(1, 1), decays=(0.6, 0.9)), st.integers(1, 4))
def test_equal_experts_give_the_truncated_task_vector(case: Case, copies: int) -> None:
    rank = max(1, case.full // copies)
    result = tsv_m(TaskMatrices(case.stack.repeat(copies, 1, 1)))
    assert_near(result, truncated(case.arrays[0], rank), case.tolerance(0.02), np.linalg.norm(case.arrays))


@PROPERTY
@given(cases(dtypes=EXACT, decays=(0.6, 0.9)), st.data())
def test_a_zero_task_vector_is_skipped(case: Case, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, case.tasks))
    more = Case(torch.cat([case.stack[:place], torch.zeros_like(case.stack[:1]), case.stack[place:]]))
    posed = well_posed(more)
    assume(posed > 1e-4)
    moved = [array for array in more.arrays if array.any()]
    rank = max(1, case.full // more.tasks)
    # The others share their places as if they were alone, with the rank that all the experts together allow.
    expected = by_hand(moved, rank * len(moved)) if moved else np.zeros(case.stack.shape[1:])
    assert_near(tsv_m(more.matrices), expected, tolerance(case, posed), np.linalg.norm(case.arrays))


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (4, 4)])
def test_zero_task_vectors_alone_give_zero(shape: tuple[int, int]) -> None:
    assert not tsv_m(TaskMatrices(torch.zeros(3, *shape))).any()


def test_more_tasks_than_rank_keep_one_component_each() -> None:
    generator = torch.Generator().manual_seed(11)
    stack = torch.stack([with_spectrum((3, 8), torch.tensor([1.0, 0.4, 0.1]).double(), generator) for _ in range(5)])
    assert_near(tsv_m(TaskMatrices(stack)), by_hand([row.numpy() for row in stack], 3), 1e-7)


@pytest.mark.parametrize("dtype", EXACT)
def test_null_directions_of_deficient_task_vectors_take_no_part(dtype: torch.dtype) -> None:
    """Small integers multiply exactly, so these matrices have rank 2 exactly, far below floor(r / T) = 6."""
    generator = torch.Generator().manual_seed(7)
    down, up = (torch.randint(-4, 5, shape, generator=generator).double() for shape in [(2, 12, 2), (2, 2, 15)])
    stack = down @ up
    result = tsv_m(TaskMatrices(stack.to(dtype)))
    assert_near(result, by_hand([row.numpy() for row in stack], 12), 100 * torch.finfo(dtype).eps + 1e-9)
    assert torch.linalg.matrix_rank(result.double(), rtol=1e-4) == 4


@PROPERTY
@given(cases(dtypes=EXACT, decays=(0.6, 0.9)), COEFFICIENTS)
def test_scaling_transposing_and_reordering_carry_over(case: Case, coefficient: float) -> None:
    posed = well_posed(case)
    assume(posed > 1e-4)
    expected, allowed, scale = tsv_m(case.matrices), tolerance(case, posed), np.linalg.norm(case.arrays)
    assert_near(tsv_m(TaskMatrices(4 * case.stack)) / 4, expected, allowed, scale)
    assert_near(tsv_m(TaskMatrices(case.stack.mT.contiguous())).mT, expected, allowed, scale)
    assert_near(tsv_m(TaskMatrices(case.stack.flip(0))), expected, allowed, scale)
    assert_near(tsv_m(case.matrices, coefficient=coefficient), coefficient * expected.double(), allowed, scale)


@PROPERTY
@given(embedded())
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor]) -> None:
    cores, left, right = case
    whole = left @ cores @ right.mT
    found = columns([row.numpy() for row in whole], min(whole.shape[1:]))
    assert found is not None
    assume(min(whitening(found[0]), whitening(found[2])) > 3e-3)
    small = tsv_m(TaskMatrices(cores, full=min(whole.shape[1:])))
    scale = float(torch.linalg.vector_norm(whole))
    assert_near(left @ small @ right.mT, tsv_m(TaskMatrices(whole)), 1e-7, scale)


def test_other_tensors_are_averaged_and_weights_refused() -> None:
    declared = find("tsv-m")
    assert declared.elsewhere is average
    assert declared.space == "delta"
    assert not declared.weighted
