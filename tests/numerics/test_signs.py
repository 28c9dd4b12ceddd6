"""Sign election, entry by entry."""

import pytest
import torch

from taskmerge.numerics.signs import agreeing, balance, elect, split, split_and_count, trimmed

STACK = torch.tensor([[3.0, -2.0, 1.0, 0.0, 2.0], [-1.0, -3.0, 2.0, 0.0, -2.0]])
WEIGHTS = torch.tensor([1.0, -2.0], dtype=torch.float64)


def test_trimming_keeps_what_reaches_the_threshold_and_weighs_it() -> None:
    found = [row.tolist() for row in trimmed(STACK, [2.0, 0.0], WEIGHTS)]
    assert found == [[3.0, -2.0, 0.0, 0.0, 2.0], [2.0, 6.0, -4.0, 0.0, 4.0]]
    assert STACK[0, 2] == 1.0  # fresh tensors: the stack is not written to


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_itself_is_kept_and_its_lower_neighbour_is_not(dtype: torch.dtype) -> None:
    threshold = torch.tensor(0.1, dtype=dtype)
    below = torch.nextafter(threshold, torch.zeros((), dtype=dtype))
    row = torch.stack([threshold, below, -threshold, -below])[None]
    (found,) = trimmed(row, [float(threshold)], torch.ones(1, dtype=torch.float64))
    assert torch.equal(found, torch.stack([threshold, torch.zeros_like(below), -threshold, torch.zeros_like(below)]))


def test_sums_are_split_by_sign() -> None:
    positive, negative = split(iter(STACK.clone()))
    assert positive.tolist() == [3.0, 0.0, 3.0, 0.0, 2.0]
    assert negative.tolist() == [-1.0, -5.0, 0.0, 0.0, -2.0]
    with pytest.raises(ValueError, match="no rows"):
        split(iter(()))


@pytest.mark.parametrize("cancelled_up", [True, False])
def test_the_majority_decides_cancelling_entries_only(cancelled_up: bool) -> None:
    elected = elect(*split(iter(STACK.clone())), cancelled_up)
    assert elected[[0, 1, 2, 4]].tolist() == [True, False, True, cancelled_up]


def test_balance_counts_elected_entries() -> None:
    assert balance(*split(iter(STACK.clone()))) == 1
    assert balance(*split(iter(-STACK))) == -1


def test_entries_of_the_elected_sign_are_counted() -> None:
    up = torch.tensor([True, False, True, True, False])
    sums, counts = split_and_count(iter(STACK.clone()))
    assert [one.tolist() for one in sums] == [one.tolist() for one in split(iter(STACK.clone()))]
    assert counts.net.tolist() == [0.0, -2.0, 2.0, 0.0, 0.0]
    assert counts.touched.tolist() == [2.0, 2.0, 2.0, 0.0, 2.0]
    assert agreeing(counts, up).tolist() == [1.0, 2.0, 2.0, 0.0, 1.0]
