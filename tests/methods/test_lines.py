"""LiNeS against its definition."""

import pytest
import torch
from elementwise_cases import PROPERTY, assert_is, ones, stacks, vectors, weights_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.lines import depth_factor, lines
from taskmerge.methods.task_arithmetic import task_arithmetic

POSITIONS = st.none() | st.integers(1, 6).flatmap(lambda blocks: st.tuples(st.integers(0, blocks - 1), st.just(blocks)))


def factor_by_hand(position: tuple[int, int] | None, tasks: int, alpha: float | None, beta: float) -> float:
    alpha = 1 / tasks if alpha is None else alpha
    if position is None or position[1] == 1:
        return alpha
    return alpha + beta * position[0] / (position[1] - 1)


@PROPERTY
@given(stacks(), POSITIONS, st.sampled_from([None, 0.0, 0.25]), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_lines_is_its_definition(
    stack: Tensor, position: tuple[int, int] | None, alpha: float | None, beta: float, data: st.DataObject
) -> None:
    weights = data.draw(weights_for(len(stack)))
    factor = factor_by_hand(position, len(stack), alpha, beta)
    assert depth_factor(position, len(stack), alpha, beta) == pytest.approx(factor)
    columns = zip(*vectors(stack), strict=True)
    expected = [factor * sum(w * x for w, x in zip(weights.tolist(), column, strict=True)) for column in columns]
    assert_is(lines(stack, weights, position, alpha=alpha, beta=beta), expected, stack)


def test_the_first_block_has_alpha_and_the_last_alpha_plus_beta() -> None:
    assert [depth_factor((block, 3), 4) for block in range(3)] == [0.25, 0.5, 0.75]
    assert depth_factor(None, 4) == 0.25
    assert depth_factor((0, 1), 4) == 0.25  # one block: l / (L - 1) would be 0 / 0


@PROPERTY
@given(stacks())
def test_without_slope_it_is_task_arithmetic(stack: Tensor) -> None:
    found = lines(stack, ones(stack), (1, 2), alpha=0.3, beta=0.0)
    assert torch.equal(found, task_arithmetic(stack, ones(stack), coefficient=0.3))
