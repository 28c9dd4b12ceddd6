"""MagMax against its definition."""

import torch
from elementwise_cases import PROPERTY, assert_is, stacks, vectors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.magmax import magmax


def magmax_by_hand(rows: list[list[float]], coefficient: float) -> list[float]:
    merged = []
    for at in range(len(rows[0])):
        best = rows[0][at]
        for row in rows[1:]:
            if abs(row[at]) > abs(best):
                best = row[at]
        merged.append(coefficient * best)
    return merged


@PROPERTY
@given(stacks(), st.sampled_from([0.5, 1.0, -0.25]))
def test_magmax_is_its_definition(stack: Tensor, coefficient: float) -> None:
    assert_is(magmax(stack, coefficient=coefficient), magmax_by_hand(vectors(stack), coefficient), stack)


@PROPERTY
@given(stacks(least=2, rich=False), st.data())
def test_equal_magnitudes_go_to_the_first_task_of_any_number(stack: Tensor, data: st.DataObject) -> None:
    """However many later tasks reach the same magnitudes with other signs."""
    signs = data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=len(stack), max_size=len(stack)))
    equals = torch.stack([stack[0] * one for one in signs])
    assert torch.equal(magmax(equals, coefficient=1.0), equals[0])


def test_equal_magnitudes_go_to_the_first_task() -> None:
    assert magmax(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), coefficient=1.0).tolist() == [1.0, -1.0]
