"""Truncated task arithmetic against its definition, and the identities it must obey."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectral_cases import EXACT, PROPERTY, Case, assert_near, cases, embedded, gap, lowest, truncated
from torch import Tensor

from taskmerge.methods.registry import find
from taskmerge.methods.task_arithmetic import task_arithmetic
from taskmerge.methods.truncated_task_arithmetic import truncated_task_arithmetic
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices

WEIGHT = st.floats(-2.0, 2.0)


def least_gap(case: Case, rank: int) -> float:
    return min(gap(array, rank) for array in case.arrays)


@PROPERTY
@given(cases(), st.data())
def test_it_is_its_definition(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, case.full))
    weights = torch.tensor(data.draw(st.lists(WEIGHT, min_size=case.tasks, max_size=case.tasks))).double()
    coefficient = data.draw(st.sampled_from([-1.0, 0.3, 1.7]))
    found = least_gap(case, rank)
    assume(found > 1e-3)
    expected = np.zeros(case.stack.shape[1:])
    for weight, array in zip(weights.tolist(), case.arrays, strict=True):
        expected += coefficient * weight * truncated(array, rank)
    before = case.stack.clone()
    options = {"rank": Rank("count", rank), "coefficient": coefficient}
    result = truncated_task_arithmetic(case.matrices, weights, **options)
    assert result.dtype == case.stack.dtype
    assert torch.equal(case.stack, before)
    scale = 4 * sum(map(np.linalg.norm, case.arrays))
    assert_near(result, expected, case.tolerance(found), scale)


@pytest.mark.parametrize(("tasks", "usual"), [(1, 0.3), (13, 0.3), (14, 0.1)])
def test_the_usual_coefficient_falls_with_many_tasks(tasks: int, usual: float) -> None:
    stack = torch.randn(tasks, 5, 6, generator=torch.Generator().manual_seed(2))
    weights = torch.ones(tasks).double()
    expected = truncated_task_arithmetic(TaskMatrices(stack), weights, coefficient=usual)
    assert torch.equal(truncated_task_arithmetic(TaskMatrices(stack), weights), expected)


def test_the_default_rank_is_eight_percent() -> None:
    stack = torch.randn(2, 50, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = truncated_task_arithmetic(TaskMatrices(stack), torch.ones(2).double(), coefficient=1.0)
    assert_near(result, sum(truncated(row.numpy(), 4) for row in stack), 1e-9)


@PROPERTY
@given(cases(), st.floats(-1.0, 2.0))
def test_at_full_rank_it_is_task_arithmetic(case: Case, coefficient: float) -> None:
    weights = torch.ones(case.tasks).double()
    result = truncated_task_arithmetic(case.matrices, weights, rank=Rank("ratio", 1.0), coefficient=coefficient)
    scale = 3 * float(torch.linalg.vector_norm(case.stack.double()))
    assert_near(result, task_arithmetic(case.stack, weights, coefficient=coefficient), 50 * max(case.eps, 1e-10), scale)


@PROPERTY
@given(cases(dtypes=EXACT), st.data())
def test_the_lowest_components_are_what_truncation_leaves(case: Case, data: st.DataObject) -> None:
    """E2: Σ rev_k(τ_t) = Σ τ_t - Σ SVD_{r-k}(τ_t), without a decomposition of its own."""
    highest = data.draw(st.integers(1, case.full))
    found = least_gap(case, highest)
    assume(found > 1e-3)
    weights = torch.ones(case.tasks).double()
    options = {"rank": Rank("count", highest), "coefficient": 1.0}
    rest = case.stack.sum(0) - truncated_task_arithmetic(case.matrices, weights, **options)
    expected = sum(lowest(array, case.full - highest) for array in case.arrays)
    assert_near(rest, expected, 3 * case.tolerance(found), sum(map(np.linalg.norm, case.arrays)))


def test_other_tensors_get_task_arithmetic_with_the_same_options() -> None:
    declared = find("truncated-task-arithmetic")
    assert declared.elsewhere is task_arithmetic
    assert declared.space == "delta"
    assert declared.weighted
    assert declared.settings["coefficient"].default is find("task_arithmetic").settings["coefficient"].default is None


@PROPERTY
@given(cases(dtypes=EXACT), st.data())
def test_a_zero_task_vector_changes_nothing(case: Case, data: st.DataObject) -> None:
    rank = Rank("count", data.draw(st.integers(1, case.full)))
    place = data.draw(st.integers(0, case.tasks))
    more = torch.cat([case.stack[:place], torch.zeros_like(case.stack[:1]), case.stack[place:]])
    options = {"rank": rank, "coefficient": 0.7}
    with_zero = truncated_task_arithmetic(TaskMatrices(more), torch.ones(case.tasks + 1).double(), **options)
    without = truncated_task_arithmetic(case.matrices, torch.ones(case.tasks).double(), **options)
    assert_near(with_zero, without, 10 * case.eps)


@PROPERTY
@given(cases(dtypes=EXACT), st.data())
def test_scaling_transposing_and_reordering_carry_over(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, case.full))
    found = least_gap(case, rank)
    assume(found > 1e-3)
    weights = torch.tensor(data.draw(st.lists(WEIGHT, min_size=case.tasks, max_size=case.tasks))).double()
    options = {"rank": Rank("count", rank), "coefficient": 0.5}
    expected = truncated_task_arithmetic(case.matrices, weights, **options)
    scale = sum(map(np.linalg.norm, case.arrays))
    tolerance = case.tolerance(found)
    scaled = truncated_task_arithmetic(TaskMatrices(4 * case.stack), weights, **options)
    turned = truncated_task_arithmetic(TaskMatrices(case.stack.mT.contiguous()), weights, **options)
    back = truncated_task_arithmetic(TaskMatrices(case.stack.flip(0)), weights.flip(0), **options)
    assert_near(scaled / 4, expected, tolerance, scale)
    assert_near(turned.mT, expected, tolerance, scale)
    assert_near(back, expected, tolerance, scale)


@PROPERTY
@given(embedded())
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor]) -> None:
    cores, left, right = case
    whole = left @ cores @ right.mT
    weights = torch.ones(len(cores)).double()
    for said in ("0.1", "2", "0.9"):
        small = TaskMatrices(cores, full=min(whole.shape[1:]))
        result = truncated_task_arithmetic(small, weights, rank=Rank.parse(said))
        expected = truncated_task_arithmetic(TaskMatrices(whole), weights, rank=Rank.parse(said))
        assert_near(left @ result @ right.mT, expected, 1e-8, float(torch.linalg.vector_norm(whole)))
