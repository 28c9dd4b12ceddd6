"""Identities between methods: exact, whatever the numbers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.apply import apply
from taskmerge.methods.average import average
from taskmerge.methods.cart import cart
from taskmerge.methods.contract import declaration
from taskmerge.methods.task_arithmetic import task_arithmetic

LAW = settings(max_examples=25, deadline=None)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(result: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((result - expected).abs().max()) <= tolerance * float(expected.abs().max())


@LAW
@given(st.integers(1, 5), st.integers(0, 50), st.floats(-3, 3), st.sampled_from([(), (5,), (6, 5)]))
def test_averaging_is_task_arithmetic_and_untruncated_cart(
    tasks: int, seed: int, coefficient: float, shape: tuple[int, ...]
) -> None:
    experts, base = normal((tasks, *shape), seed), normal(shape, seed + 100)
    mean = apply(average, experts).merged
    assert_close(apply(task_arithmetic, experts, base, options={"coefficient": 1 / tasks}).merged, mean, 1e-9)
    untruncated = {"rank": "1.0", "coefficient": coefficient}
    assert_close(apply(cart, experts, options=untruncated).merged, mean, 1e-8)


@LAW
@given(st.integers(0, 50), st.floats(-3, 3), st.sampled_from(["1", "0.5", "energy:0.9", "1.0"]))
def test_cart_of_two_is_the_average_and_of_one_the_expert(seed: int, coefficient: float, rank: str) -> None:
    experts, options = normal((2, 6, 5), seed), {"rank": rank, "coefficient": coefficient}
    assert_close(apply(cart, experts, options=options).merged, apply(average, experts).merged, 1e-8)
    assert_close(apply(cart, experts[:1], options=options).merged, experts[0], 1e-12)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    mean = apply(average, experts, weights=weights).merged
    assert_close(apply(cart, experts, weights=weights, options=options).merged, mean, 1e-8)


def test_average_and_cart_read_no_base() -> None:
    assert not declaration(average).needs_base
    assert not declaration(cart).needs_base
