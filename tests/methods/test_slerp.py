"""SLERP against its definition: on the arc, nearly parallel, and without direction."""

import math

import pytest
import torch
from elementwise_cases import PROPERTY, assert_is, stacks, vectors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.slerp import slerp

PLACES = st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])


def slerp_by_hand(a: list[float], b: list[float], t: float) -> list[float]:
    length_a, length_b = (math.sqrt(math.fsum(x * x for x in row)) for row in (a, b))
    near, far = 1 - t, t
    if length_a and length_b:
        cosine = math.fsum((x / length_a) * (y / length_b) for x, y in zip(a, b, strict=True))
        if abs(cosine) <= 0.9995:
            angle = math.acos(cosine)
            near, far = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [near * x + far * y for x, y in zip(a, b, strict=True)]


@PROPERTY
@given(stacks(least=2, most=2), PLACES)
def test_slerp_is_its_definition(stack: Tensor, t: float) -> None:
    assert_is(slerp(stack, t=t), slerp_by_hand(*vectors(stack), t), stack, tolerance=2e-6)


@PROPERTY
@given(stacks(least=2, most=2))
def test_ends_are_the_experts_and_turning_the_order_turns_t(stack: Tensor) -> None:
    near = {"rtol": 1e-5, "atol": 1e-6}
    assert torch.allclose(slerp(stack, t=0.0), stack[0], **near)
    assert torch.allclose(slerp(stack, t=1.0), stack[1], **near)
    assert torch.allclose(slerp(stack.flip(0), t=0.25), slerp(stack, t=0.75), **near)


def test_length_is_kept_on_the_arc_between_equally_long_experts() -> None:
    stack = torch.nn.functional.normalize(torch.randn(2, 40, generator=torch.Generator().manual_seed(0)), dim=1)
    for t in (0.1, 0.5, 0.9):
        assert float(slerp(stack, t=t).norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("second", [[1.0, 0.0], [-1.0, 0.0], [1.0, 0.03], [0.0, 0.0]])
def test_where_the_arc_is_undefined_it_is_linear(second: list[float]) -> None:
    stack = torch.tensor([[1.0, 0.0], second])
    assert torch.allclose(slerp(stack, t=0.25), 0.75 * stack[0] + 0.25 * stack[1])


def test_huge_and_tiny_tensors_keep_their_angle() -> None:
    for size, dtype in ((1e30, torch.float32), (1e-30, torch.float32), (1e100, torch.float64), (1e-100, torch.float64)):
        stack = size * torch.eye(2, dtype=dtype)
        assert torch.allclose(slerp(stack) / size, torch.full((2,), math.sqrt(0.5), dtype=dtype))
