"""CART against its definition, and the identities it must obey."""

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
    embedded,
    gap,
    lowest,
    truncated,
)
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.cart import cart
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices

POSITIVE = st.floats(0.1, 3.0)


def merged(stack: Tensor, weights: Tensor, **options: object) -> Tensor:
    """The whole method: centre, kernel, and the average added back."""
    centred = stack.clone()
    average_of_all = centre_(centred, weights)
    return average_of_all + cart(TaskMatrices(centred), weights, **options)


def by_hand(arrays: list[np.ndarray], weights: list[float], rank: int, coefficient: float) -> np.ndarray:
    mean = sum(weight * array for weight, array in zip(weights, arrays, strict=True)) / sum(weights)
    result = mean.copy()
    for weight, array in zip(weights, arrays, strict=True):
        share = weight / sum(weights)
        result += coefficient * len(arrays) * share * truncated(array - mean, rank)
    return result


def centred_gap(case: Case, weights: list[float], rank: int) -> float:
    """The least spectral gap of the centred matrices in units of the largest expert, which sets the rounding."""
    mean = sum(weight * array for weight, array in zip(weights, case.arrays, strict=True)) / sum(weights)
    size = max(np.linalg.norm(array, 2) for array in case.arrays)
    found = 1.0
    for array in case.arrays:
        centred = array - mean
        if np.linalg.norm(centred, 2) > 1e-3 * size:
            found = min(found, gap(centred, rank) * np.linalg.norm(centred, 2) / size)
    return found


@PROPERTY
@given(cases(), st.data())
def test_cart_is_its_definition(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, case.full))
    weights = data.draw(st.just([1.0] * case.tasks) | st.lists(POSITIVE, min_size=case.tasks, max_size=case.tasks))
    coefficient = data.draw(st.sampled_from([0.3, 1.0, 2.3]))
    found = centred_gap(case, weights, rank)
    assume(found > 1e-3)
    given_weights = torch.tensor(weights, dtype=torch.float64)
    result = merged(case.stack, given_weights, rank=Rank("count", rank), coefficient=coefficient)
    expected = by_hand(case.arrays, weights, rank, coefficient)
    assert result.dtype == case.stack.dtype
    assert_near(result, expected, 3 * case.tolerance(found), sum(map(np.linalg.norm, case.arrays)))


@pytest.mark.parametrize("said", ["0.25", "3", "energy:0.9", "1.0"])
def test_ranks_are_understood(said: str) -> None:
    stack = torch.randn(3, 12, 17, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    arrays = [row.numpy() for row in stack]
    mean = sum(arrays) / 3
    expected = mean.copy()
    for array in arrays:
        values = np.linalg.svd(array - mean, compute_uv=False)
        energy = np.cumsum(values**2) / np.sum(values**2)
        rank = {"0.25": 3, "3": 3, "energy:0.9": int(np.argmax(energy >= 0.9)) + 1, "1.0": 12}[said]
        expected += truncated(array - mean, rank)
    assert_near(merged(stack, torch.ones(3).double(), rank=Rank.parse(said)), expected, 1e-9)


def test_by_default_eight_percent_are_kept_and_counted_once() -> None:
    stack = torch.randn(3, 50, 60, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    expected = by_hand([row.numpy() for row in stack], [1.0, 1.0, 1.0], 4, 1.0)
    assert_near(merged(stack, torch.ones(3).double()), expected, 1e-9)


@PROPERTY
@given(cases(), st.floats(0.1, 3.0))
def test_at_full_rank_it_is_the_average(case: Case, coefficient: float) -> None:
    weights = torch.ones(case.tasks).double()
    result = merged(case.stack, weights, rank=Rank("ratio", 1.0), coefficient=coefficient)
    scale = float(torch.linalg.vector_norm(case.stack.double()))
    assert_near(result, average(case.stack, weights), 50 * max(case.eps, 1e-10), scale)


@PROPERTY
@given(cases(tasks=(2, 2)), st.lists(POSITIVE, min_size=2, max_size=2), st.data())
def test_two_experts_give_the_average_whatever_the_weights(
    case: Case, weights: list[float], data: st.DataObject
) -> None:
    rank = Rank("count", data.draw(st.integers(1, case.full)))
    given_weights = torch.tensor(weights).double()
    assert torch.equal(merged(case.stack, given_weights, rank=rank), average(case.stack, given_weights))


def test_two_experts_with_repeated_singular_values_give_the_average() -> None:
    stack = torch.stack([torch.eye(6), torch.zeros(6, 6)])
    weights = torch.ones(2).double()
    assert torch.equal(merged(stack, weights, rank=Rank("count", 2)), torch.eye(6) / 2)


def test_two_vectors_centred_about_more_experts_do_not_cancel() -> None:
    stack = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    weights = torch.ones(3).double()
    centre_(stack, weights)
    result = cart(TaskMatrices(stack[:2]), weights[:2], rank=Rank("count", 2))
    assert_near(result, truncated(stack[0].numpy(), 2) + truncated(stack[1].numpy(), 2), 1e-9)


@PROPERTY
@given(cases(tasks=(1, 1)), st.integers(1, 5))
def test_equal_experts_and_a_single_one_give_that_expert(case: Case, copies: int) -> None:
    stack = case.stack.repeat(copies, 1, 1)
    assert torch.equal(merged(stack, torch.ones(copies).double()), case.stack[0])


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(3, 5)), st.randoms(use_true_random=False), st.data())
def test_order_of_experts_does_not_matter(case: Case, random: object, data: st.DataObject) -> None:
    weights = torch.tensor(data.draw(st.lists(POSITIVE, min_size=case.tasks, max_size=case.tasks))).double()
    order = list(range(case.tasks))
    random.shuffle(order)
    rank = data.draw(st.integers(1, case.full))
    found = centred_gap(case, weights.tolist(), rank)
    assume(found > 1e-3)
    options = {"rank": Rank("count", rank), "coefficient": 1.5}
    expected = merged(case.stack, weights, **options)
    scale = float(torch.linalg.vector_norm(case.stack.double()))
    assert_near(merged(case.stack[order], weights[order], **options), expected, case.tolerance(found), scale)


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(3, 5)), st.data())
def test_transposing_the_weights_transposes_the_result(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, case.full))
    weights = torch.ones(case.tasks).double()
    found = centred_gap(case, weights.tolist(), rank)
    assume(found > 1e-3)
    turned = merged(case.stack.mT.contiguous(), weights, rank=Rank("count", rank)).mT
    scale = float(torch.linalg.vector_norm(case.stack.double()))
    assert_near(turned, merged(case.stack, weights, rank=Rank("count", rank)), case.tolerance(found), scale)


@PROPERTY
@given(embedded())
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor]) -> None:
    cores, left, right = case
    whole = left @ cores @ right.mT
    weights = torch.ones(len(cores)).double()
    rank = Rank("ratio", 0.1)  # two components of 20 or 24: a share of the whole matrix's rank, not of the core's
    centre_(cores, weights)
    centre_(whole, weights)
    assume(min(gap(core.numpy(), 2) for core in cores) > 1e-3)
    small = cart(TaskMatrices(cores, full=min(whole.shape[1:])), weights, rank=rank)
    scale = float(torch.linalg.vector_norm(whole))
    assert_near(left @ small @ right.mT, cart(TaskMatrices(whole), weights, rank=rank), 1e-8, scale)


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(3, 5)), COEFFICIENTS, st.data())
def test_the_lowest_components_give_the_mirror_image_through_the_average(
    case: Case, coefficient: float, data: st.DataObject
) -> None:
    """E2: keeping the k lowest components of every centred task vector is 2 θ̄ - (CART at r - k)."""
    highest = data.draw(st.integers(1, case.full))
    weights = torch.ones(case.tasks).double()
    found = centred_gap(case, weights.tolist(), highest)
    assume(found > 1e-3)
    mean = sum(case.arrays) / case.tasks
    expected = mean + coefficient * sum(lowest(array - mean, case.full - highest) for array in case.arrays)
    proper = merged(case.stack, weights, rank=Rank("count", highest), coefficient=coefficient)
    mirrored = 2 * average(case.stack, weights) - proper
    scale = (1 + abs(coefficient)) * sum(map(np.linalg.norm, case.arrays))
    assert_near(mirrored, expected, 3 * case.tolerance(found), scale)


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(3, 5)), st.data())
def test_one_factorisation_serves_every_rank_and_coefficient(case: Case, data: st.DataObject) -> None:
    """E5, in any order of the points, and nested: the larger rank adds its further components to the smaller."""
    weights = torch.ones(case.tasks).double()
    ranks = data.draw(st.lists(st.integers(1, case.full), min_size=1, max_size=4, unique=True))
    found = min(centred_gap(case, weights.tolist(), rank) for rank in ranks)
    assume(found > 1e-3)
    centred = case.stack.clone()
    centre_(centred, weights)
    shared = TaskMatrices(centred)
    shared.top(max(ranks))
    scale = sum(map(np.linalg.norm, case.arrays))
    for rank in ranks:
        coefficient = data.draw(COEFFICIENTS)
        mean = sum(case.arrays) / case.tasks
        expected = coefficient * sum(truncated(array - mean, rank) for array in case.arrays)
        result = cart(shared, weights, rank=Rank("count", rank), coefficient=coefficient)
        assert_near(result, expected, 3 * case.tolerance(found), (1 + abs(coefficient)) * scale)


def test_a_grid_over_one_factorisation_equals_separate_runs() -> None:
    stack = torch.randn(4, 24, 30, generator=torch.Generator().manual_seed(1))
    weights = torch.ones(4).double()
    shared = TaskMatrices(stack)
    for said in ("0.5", "2", "0.25", "1.0"):
        for coefficient in (0.5, 2.0):
            options = {"rank": Rank.parse(said), "coefficient": coefficient}
            assert_near(cart(shared, weights, **options), cart(TaskMatrices(stack), weights, **options), 1e-5)
