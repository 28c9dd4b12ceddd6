"""STAR against its definition, and the identities it must obey."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectral_cases import EXACT, PROPERTY, Case, assert_near, cases, embedded, gap
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.registry import find
from taskmerge.methods.star import components_for, star
from taskmerge.numerics.spectral import TaskMatrices

ETAS = st.floats(0.05, 0.95)
POSITIVE = st.floats(0.1, 3.0)


def needed(array: np.ndarray, eta: float) -> int:
    values = np.linalg.svd(array, compute_uv=False)
    kept = 0.0
    for count, value in enumerate(values, start=1):
        kept += value
        if kept >= eta * values.sum():
            return count
    return len(values)


def by_hand(arrays: list[np.ndarray], weights: list[float], eta: float) -> np.ndarray:
    total = np.zeros_like(arrays[0])
    for array, weight in zip(arrays, weights, strict=True):
        if not array.any():
            continue
        u, s, vt = np.linalg.svd(array, full_matrices=False)
        count = needed(array, eta)
        grown = s.sum() / s[:count].sum()
        for i in range(count):
            total += weight / sum(weights) * grown * s[i] * np.outer(u[:, i], vt[i])
    return total


def posed(case: Case, eta: float) -> float:
    """The least spectral gap at the chosen ranks; refuses shares that hit a cumulative sum closely."""
    found = 1.0
    for array in case.arrays:
        if array.any():
            values = np.linalg.svd(array, compute_uv=False)
            assume(np.min(np.abs(np.cumsum(values) / values.sum() - eta)) > 1e-4)
            found = min(found, gap(array, needed(array, eta)))
    return found


@PROPERTY
@given(cases(), ETAS, st.data())
def test_star_is_its_definition(case: Case, eta: float, data: st.DataObject) -> None:
    found = posed(case, eta)
    assume(found > 1e-3)
    weights = data.draw(st.just([1.0] * case.tasks) | st.lists(POSITIVE, min_size=case.tasks, max_size=case.tasks))
    before = case.stack.clone()
    result = star(case.matrices, torch.tensor(weights, dtype=torch.float64), eta=eta)
    assert result.dtype == case.stack.dtype
    assert torch.equal(case.stack, before)
    assert_near(result, by_hand(case.arrays, weights, eta), 2 * case.tolerance(found), np.linalg.norm(case.arrays))


@pytest.mark.parametrize(
    ("values", "eta", "count"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0.4, 1),  # 4 of 10 is exactly the share
        ([4.0, 3.0, 2.0, 1.0], 0.41, 2),
        ([1.0] * 5, 0.4, 2),  # ties: the least rank that reaches the share
        ([3.9999998, 3.0, 2.0, 1.0], 0.4, 1),  # the same, as float32 may give the values
        ([5.0, 1.0], 0.0, 1),
        ([5.0, 1.0], 1.0, 2),
        ([0.0, 0.0], 0.4, 1),
        ([1.0], 0.4, 1),
    ],
)
def test_rank_is_the_least_that_reaches_the_share(values: list[float], eta: float, count: int) -> None:
    assert components_for(torch.tensor(values), eta) == count
    assert components_for(torch.tensor(values).double(), eta) == count


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(1, 1)), ETAS)
def test_the_nuclear_norm_is_restored(case: Case, eta: float) -> None:
    result = star(case.matrices, torch.ones(1).double(), eta=eta)
    expected = np.linalg.svd(case.arrays[0], compute_uv=False).sum()
    assert float(torch.linalg.svdvals(result.double()).sum()) == pytest.approx(expected, rel=1e-5)


@PROPERTY
@given(cases(dtypes=EXACT))
def test_with_all_of_the_norm_it_is_the_average(case: Case) -> None:
    weights = torch.ones(case.tasks).double()
    scale = float(torch.linalg.vector_norm(case.stack.double()))
    assert_near(star(case.matrices, weights, eta=1.0), average(case.stack, weights), 2e-5, scale)


@PROPERTY
@given(cases(dtypes=EXACT), ETAS)
def test_scaling_transposing_and_reordering_carry_over(case: Case, eta: float) -> None:
    found = posed(case, eta)
    assume(found > 1e-3)
    weights = torch.arange(1, case.tasks + 1).double()
    expected, tolerance = star(case.matrices, weights, eta=eta), 2 * case.tolerance(found)
    scale = np.linalg.norm(case.arrays)
    assert_near(star(TaskMatrices(4 * case.stack), weights, eta=eta) / 4, expected, tolerance, scale)
    assert_near(star(TaskMatrices(case.stack.mT.contiguous()), weights, eta=eta).mT, expected, tolerance, scale)
    assert_near(star(TaskMatrices(case.stack.flip(0)), weights.flip(0), eta=eta), expected, tolerance, scale)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (4, 4)])
def test_zero_task_vectors_give_zero(shape: tuple[int, int]) -> None:
    assert not star(TaskMatrices(torch.zeros(3, *shape)), torch.ones(3).double()).any()


def test_a_rank_deficient_task_vector_keeps_its_norm() -> None:
    generator = torch.Generator().manual_seed(7)
    down, up = (torch.randint(-4, 5, shape, generator=generator).double() for shape in [(1, 12, 2), (1, 2, 15)])
    stack = down @ up
    result = star(TaskMatrices(stack.float()), torch.ones(1).double(), eta=0.9)
    assert_near(result, by_hand([stack[0].numpy()], [1.0], 0.9), 1e-5)


@PROPERTY
@given(embedded(), ETAS)
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor], eta: float) -> None:
    cores, left, right = case
    assume(posed(Case(cores), eta) > 1e-3)
    whole = left @ cores @ right.mT
    weights = torch.ones(len(cores)).double()
    small = star(TaskMatrices(cores, full=min(whole.shape[1:])), weights, eta=eta)
    scale = float(torch.linalg.vector_norm(whole))
    assert_near(left @ small @ right.mT, star(TaskMatrices(whole), weights, eta=eta), 1e-8, scale)


def test_other_tensors_are_averaged_with_the_same_weights() -> None:
    declared = find("star")
    assert declared.elsewhere is average
    assert declared.space == "delta"
    assert declared.weighted
