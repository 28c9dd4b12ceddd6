"""Consensus task arithmetic against its definition."""

import torch
from elementwise_cases import PROPERTY, assert_is, ones, stacks, vectors, weights_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.consensus_ta import consensus_ta


def masked_by_hand(rows: list[list[float]], multi_task: list[float], strictness: float, agreement: int) -> list[float]:
    merged = []
    for at, total in enumerate(multi_task):
        wanting = sum(abs(row[at]) > strictness * abs(total - row[at]) for row in rows)
        merged.append(total if wanting >= agreement else 0.0)
    return merged


@PROPERTY
@given(stacks(rich=False), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(1, 4), st.data())
def test_consensus_is_its_definition(stack: Tensor, strictness: float, agreement: int, data: st.DataObject) -> None:
    weights = data.draw(weights_for(len(stack)))
    rows = [[w * value for value in row] for w, row in zip(weights.tolist(), vectors(stack), strict=True)]
    total = [sum(column) for column in zip(*rows, strict=True)]
    expected = [0.5 * value for value in masked_by_hand(rows, total, strictness, agreement)]
    found = consensus_ta(stack, weights, strictness=strictness, agreement=agreement, coefficient=0.5)
    assert_is(found, expected, stack, tolerance=0)


def test_comparison_is_strict_so_an_entry_that_never_moved_is_in_no_mask() -> None:
    still = torch.zeros(3, 2)
    assert consensus_ta(still, ones(still), strictness=0.0, agreement=1).tolist() == [0.0, 0.0]
    equal = torch.tensor([[1.0], [1.0]])  # |τ_1| = 1 · |τ_MTL - τ_1|
    assert consensus_ta(equal, ones(equal), strictness=1.0, agreement=1).tolist() == [0.0]
    assert consensus_ta(equal, ones(equal), strictness=0.999, agreement=2, coefficient=1.0).tolist() == [2.0]
