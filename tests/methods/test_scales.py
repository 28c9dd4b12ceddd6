"""Spectral methods, and those that measure angles, commute with powers of two: no norm, square or sum overflows."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.contract import Method
from taskmerge.methods.kernel import accepted
from taskmerge.methods.registry import find, methods
from taskmerge.numerics.powers import times_power
from taskmerge.numerics.spectral import TaskMatrices

PROPERTY = settings(max_examples=15, deadline=None)
SPECTRAL = [method for method in methods().values() if method.granularity(method.defaults()) == "matrix"]
ANGLES = [find("slerp"), find("model_stock")]
LAST = 2.0**-149
"""The last digit of float32 below 2^-126."""


def merged(method: Method, stack: Tensor) -> Tensor:
    handed: dict[str, Any] = {"weights": torch.ones(len(stack), dtype=torch.float64)}
    data = TaskMatrices(stack) if method in SPECTRAL else stack
    return method.kernel(data, **accepted(method.kernel, handed))


@pytest.mark.parametrize("method", [*SPECTRAL, *ANGLES], ids=lambda method: method.name)
@PROPERTY
@given(
    seed=st.integers(0, 2**32),
    exponent=st.integers(-130, 120),
    tasks=st.integers(2, 4),
    shape=st.sampled_from([(20, 12), (12, 12), (64, 56), (30, 70)]),
)
@example(seed=1, exponent=120, tasks=3, shape=(64, 56))  # the singular values add up to more than float32 holds
@example(seed=1, exponent=64, tasks=2, shape=(20, 12))  # squares overflow
@example(seed=1, exponent=-80, tasks=2, shape=(20, 12))  # squares underflow
@example(seed=1, exponent=-130, tasks=3, shape=(30, 70))  # the entries themselves are subnormal
def test_scaling_by_a_power_of_two_scales_the_result(
    method: Method, seed: int, exponent: int, tasks: int, shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 if method in ANGLES else tasks, *shape, generator=generator)
    rows += torch.randn(shape, generator=generator) / 2  # experts of one base have something in common
    stack = times_power(times_power(rows, exponent), -exponent)  # with the digits that are left at that scale
    expected = merged(method, stack).double()
    result = times_power(merged(method, times_power(stack, exponent)).double(), -exponent)
    assert torch.isfinite(result).all()
    tolerance = 1e-4 + 300 * LAST * 2.0**-exponent
    assert float((result - expected).norm()) <= tolerance * float(expected.norm())
