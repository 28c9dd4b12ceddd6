"""TIES against its definition: scope, ties of magnitude, zero sums, weights, divisor."""

import torch
from elementwise_cases import DENSITIES, PROPERTY, assert_is, ones, scan_of, share, sign, stacks, vectors, weights_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.ties import measure, model_trim, ties


def ties_by_hand(
    rows: list[list[float]], weights: list[float], density: float, aggregate: str, coefficient: float, extra: int = 0
) -> list[float]:
    """Yadav et al., algorithm 1, on a whole model; zero sums take the majority sign, an even majority is negative."""
    count = len(rows[0])
    kept = min(count, max(1, share(density, count)) + extra)
    trimmed = []
    for row, weight in zip(rows, weights, strict=True):
        cutoff = sorted((abs(value) for value in row), reverse=True)[kept - 1]
        trimmed.append([weight * value if abs(value) >= cutoff else 0.0 for value in row])
    sums = [sum(row[at] for row in trimmed) for at in range(count)]
    majority = sign(sum(sign(value) for value in sums)) or -1
    merged = []
    for at in range(count):
        elected = sign(sums[at]) or majority
        agreeing = [row[at] for row in trimmed if sign(row[at]) == elected]
        divisor = max(1, len(agreeing)) if aggregate == "mean" else 1
        merged.append(coefficient * sum(agreeing) / divisor)
    return merged


@PROPERTY
@given(stacks(), DENSITIES, st.sampled_from(["mean", "sum"]), st.sampled_from(["kth", "next"]), st.data())
def test_one_tensor_is_the_definition(
    stack: Tensor, density: float, aggregate: str, threshold: str, data: st.DataObject
) -> None:
    weights = data.draw(weights_for(len(stack)))
    found = ties(
        stack, weights, density=density, scope="tensor", aggregate=aggregate, coefficient=0.5, threshold=threshold
    )
    expected = ties_by_hand(vectors(stack), weights.tolist(), density, aggregate, 0.5, extra=threshold == "next")
    assert_is(found, expected, stack)


@PROPERTY
@given(stacks(rich=False), DENSITIES, st.sampled_from(["mean", "sum"]), st.data())
def test_whole_model_is_the_definition(stack: Tensor, density: float, aggregate: str, data: st.DataObject) -> None:
    other = torch.tensor(data.draw(st.lists(st.integers(-8, 8), min_size=7, max_size=7)), dtype=stack.dtype) / 4
    second = torch.stack([other.roll(task) for task in range(len(stack))])
    weights = data.draw(weights_for(len(stack)))
    trim = model_trim(scan_of(stack, second), density=density, scope="model", threshold="kth", weights=weights)
    rows = [a + b for a, b in zip(vectors(stack), vectors(second), strict=True)]
    expected = ties_by_hand(rows, weights.tolist(), density, aggregate, 1.0 if aggregate == "mean" else 0.3)
    size = stack[0].numel()
    assert_is(ties(stack, weights, trim, density=density, aggregate=aggregate), expected[:size], stack)
    assert_is(ties(second, weights, trim, density=density, aggregate=aggregate), expected[size:], second)


def test_cancelling_entries_take_the_sign_of_the_models_majority() -> None:
    cancelling = torch.tensor([[1.0, 5.0], [-1.0, 0.0]])
    plus, minus = torch.tensor([[3.0, 3.0], [3.0, 3.0]]), torch.tensor([[-3.0, -3.0], [-3.0, -3.0]])
    for other, expected in ((plus, 1.0), (minus, -1.0)):
        trim = measure(scan_of(cancelling, other), density=1.0)
        assert ties(cancelling, ones(cancelling), trim, density=1.0)[0] == expected


def test_weights_act_before_the_majority_is_counted() -> None:
    stack = torch.tensor([[1.0, 3.0, 1.0], [-2.0, -1.0, -1.0]])
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)  # the sums are 0, 5, 1; unweighted -1, 2, 0
    turned = -stack
    for one, expected in ((stack, 2.0), (turned, -2.0)):
        trim = model_trim(scan_of(one), density=1.0, scope="model", threshold="kth", weights=weights)
        assert ties(one, weights, trim, density=1.0)[0] == expected
        assert ties(one, weights, density=1.0)[0] == expected
    assert measure(scan_of(torch.tensor([[1.0, 1.0], [-2.0, -2.0]])), 1.0, weights=2 * weights).mostly_up is False
    assert measure(scan_of(torch.tensor([[3.0, 1.0], [-2.0, -2.0]])), 1.0).mostly_up is False
    assert measure(scan_of(torch.tensor([[3.0, 1.0], [-2.0, -2.0]])), 1.0, weights=torch.tensor([3.0, 1.0])).mostly_up


def test_even_majority_counts_as_negative_as_in_the_authors_code() -> None:
    assert ties(torch.tensor([[2.0], [-2.0]]), torch.ones(2, dtype=torch.float64), density=1.0).tolist() == [-2.0]


def test_sums_that_cancel_in_pairs_are_found_whatever_their_rounding() -> None:
    pairs = torch.tensor([[1.0, 1.0], [1e-8, 0.0], [-1.0, 0.0], [-1e-8, 0.0]])
    assert ties(pairs, ones(pairs), density=1.0, aggregate="sum", coefficient=1.0).tolist() == [1.0, 1.0]


@PROPERTY
@given(stacks(), st.sampled_from([0.2, 0.5, 1.0]))
def test_zero_task_vector_changes_nothing_in_the_sum(stack: Tensor, density: float) -> None:
    padded = torch.cat([stack, torch.zeros_like(stack[:1])])
    options = {"density": density, "aggregate": "sum"}
    assert torch.equal(ties(padded, ones(padded), **options), ties(stack, ones(stack), **options))


def test_default_coefficient_follows_the_aggregate() -> None:
    stack = torch.tensor([[4.0, 1.0], [2.0, 1.0]])
    assert ties(stack, ones(stack), density=0.5).tolist() == [3.0, 0.0]
    assert torch.allclose(ties(stack, ones(stack), density=0.5, aggregate="sum"), torch.tensor([1.8, 0.0]))


def test_all_entries_at_the_threshold_are_kept_and_reported() -> None:
    stack = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0, 0.5]])
    trim = measure(scan_of(stack), density=0.4)
    assert [cut.reached for cut in trim.cuts] == [4, 2]
    assert "2 to 4 of 5 entries a task kept, 2 asked" in trim.notes[0]
    assert measure(scan_of(stack[1:]), density=0.4).notes == ()


def test_zeros_are_never_counted_as_kept() -> None:
    trim = measure(scan_of(torch.tensor([[1.0, 0.0, 0.0, 0.0]])), density=0.5)
    assert "1 to 1 of 4 entries a task kept, 2 asked" in trim.notes[0]


def test_authors_threshold_keeps_one_entry_more_and_never_runs_out() -> None:
    stack = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    kept = {
        (density, threshold): int((ties(stack, ones(stack), density=density, threshold=threshold) != 0).sum())
        for density in (0.4, 1.0)
        for threshold in ("kth", "next")
    }
    assert kept == {(0.4, "kth"): 2, (0.4, "next"): 3, (1.0, "kth"): 5, (1.0, "next"): 5}


def test_a_density_that_keeps_less_than_one_entry_keeps_one() -> None:
    """One entry of three at 20%: rounding down would keep nothing (mergekit's `magnitude` stopped there)."""
    stack = torch.tensor([[1.0, 3.0, 2.0]])
    assert ties(stack, ones(stack), density=0.2, scope="tensor").tolist() == [0.0, 3.0, 0.0]


def test_per_tensor_scope_needs_no_first_pass() -> None:
    assert model_trim(scan_of(torch.ones(1, 2)), density=0.2, scope="tensor", threshold="kth") is None
    assert ties.declaration.granularity({"scope": "tensor"}) == "tensor"
    assert ties.declaration.granularity({"scope": "model"}) == "elements"


def test_a_model_without_numbers_has_no_threshold() -> None:
    empty = torch.empty(2, 0)
    assert measure(scan_of(empty), density=0.2).cuts == ()
    assert ties(empty, ones(empty)).shape == (0,)


def test_subnormal_magnitudes_are_trimmed_exactly() -> None:
    stack = torch.tensor([[1e-45, -3e-45, 4e-45, 0.0]])
    assert ties(stack, ones(stack), density=0.5).tolist() == [0.0, *stack[0, 1:3].tolist(), 0.0]
