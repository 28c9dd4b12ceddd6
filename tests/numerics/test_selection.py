"""Order statistics against sorting, over streams and in one tensor."""

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics import selection
from taskmerge.numerics.selection import Scan, largest, part_of, share_of, slices, sort_rows

R = TypeVar("R")
PROPERTY = settings(max_examples=50, deadline=None)
DTYPES = {torch.float32: 32, torch.float64: 64}


@st.composite
def finite_rows(draw: st.DrawFn) -> Tensor:
    """[rows, count] of any finite floats: subnormals, both zeros, repeated numbers."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    rows, count = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    anything = st.floats(allow_nan=False, allow_infinity=False, width=DTYPES[dtype])
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 2.0**-126, 3.0, -3.0])
    values = draw(st.lists(anything | few, min_size=rows * count, max_size=rows * count))
    return torch.tensor(values, dtype=dtype).view(rows, count)


def in_pieces(stack: Tensor, cuts: list[int]) -> Scan:
    """The stack cut at these columns; empty slices are passed too."""
    bounds = [0, *sorted(cut % (stack.shape[1] + 1) for cut in cuts), stack.shape[1]]

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        return (f(part_of(stack[:, a:b], share)) for a, b in itertools.pairwise(bounds))

    return scan


def by_sorting(values: list[float], rank: int) -> tuple[float, int, int]:
    ordered = sorted(values, reverse=True)
    value = ordered[rank - 1]
    return value, sum(other > value for other in values), values.count(value)


@PROPERTY
@given(finite_rows(), st.lists(st.integers(0, 100), max_size=4), st.booleans(), st.booleans(), st.data())
def test_every_rank_is_what_sorting_finds(
    stack: Tensor, cuts: list[int], signed: bool, sampled: bool, data: st.DataObject
) -> None:
    count = stack.shape[1]
    ranks = data.draw(st.lists(st.integers(1, count), min_size=1, max_size=3))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        if sampled:  # samples of a few numbers, right or wrong
            patch.setattr(selection, "ENOUGH", 1)
            patch.setattr(selection, "SHARE", 3)
        found = largest(
            in_pieces(stack, cuts),
            lambda size: asked.append(size) or [min(rank, size) for rank in ranks],
            *([lambda piece: iter(piece)] if signed else []),
            signed=signed,
        )
    assert asked[-len(stack) :] == [count] * len(stack)
    for row, statistics in zip(stack.tolist(), found, strict=True):
        values = row if signed else [abs(value) for value in row]
        expected = [by_sorting(values, rank) for rank in ranks]
        assert [(one.value, one.larger, one.equal) for one in statistics] == expected
        assert all(one.reached >= rank > one.larger for one, rank in zip(statistics, ranks, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_streams_in_threads(dtype: torch.dtype) -> None:
    stack = torch.randn(3, 400_001, generator=torch.Generator().manual_seed(0), dtype=dtype) * 1e-3

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(f, [part_of(piece, share) for piece in stack.split(10_007, dim=1)])

    ranks = [1, 80_000, 200_000, 400_001]
    ordered = stack.abs().sort(descending=True).values
    expected = [[float(row[rank - 1]) for rank in ranks] for row in ordered]
    for one in (scan, slices(stack)):
        found = largest(one, lambda count: ranks)
        assert [[statistic.value for statistic in row] for row in found] == expected


def counted(scan: Scan, shares: list[int]) -> Scan:
    """The same scan, that notes which share every pass asked for."""

    def noting(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        shares.append(share)
        return scan(f, share)

    return noting


@pytest.mark.parametrize(("dtype", "passes"), [(torch.float32, 1), (torch.float64, 3)])
@pytest.mark.parametrize("signed", [False, True])
def test_a_sample_saves_a_pass(dtype: torch.dtype, passes: int, signed: bool) -> None:
    stack = torch.randn(2, 64 * 70_000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    stack[1].mul_(1e-3)
    shares: list[int] = []
    rows = [lambda piece: iter(piece)] if signed else []
    found = largest(counted(slices(stack), shares), lambda count: [count // 5, count // 4], *rows, signed=signed)
    assert shares == [64] + [1] * passes
    ordered = (stack if signed else stack.abs()).sort(descending=True).values
    for row, statistics in zip(ordered, found, strict=True):
        assert [one.value for one in statistics] == [float(row[len(row) // 5 - 1]), float(row[len(row) // 4 - 1])]


def test_a_sample_that_misleads_costs_a_pass_and_no_more() -> None:
    stack = torch.randn(1, 64 * 70_000, generator=torch.Generator().manual_seed(0))
    for piece in stack.split(selection.SLICE, dim=1):
        part_of(piece, 64).mul_(100)
    shares: list[int] = []
    ((found,),) = largest(counted(slices(stack), shares), lambda count: [count // 5])
    assert shares == [64, 1, 1, 1]
    assert found.value == float(stack.abs().sort(descending=True).values[0, 64 * 14_000 - 1])


def test_ranks_at_the_edges_ask_no_sample_where_to_look() -> None:
    stack = torch.randn(1, 64 * 70_000, generator=torch.Generator().manual_seed(0))
    shares: list[int] = []
    ((found,),) = largest(counted(slices(stack), shares), lambda count: [1])
    assert shares == [64, 1, 1]
    assert found.value == float(stack.abs().max())


def test_one_number_everywhere() -> None:
    (found,) = largest(slices(torch.full((1, 300_000), -0.25)), lambda count: [1, 150_000, count])
    assert [(one.value, one.larger, one.equal, one.reached) for one in found] == [(0.25, 0, 300_000, 300_000)] * 3


def test_both_zeros_are_one_number() -> None:
    ((found,),) = largest(slices(torch.tensor([[-0.0, 0.0, -1.0]])), lambda count: [2], iter, signed=True)
    assert (found.value, found.larger, found.equal) == (0.0, 0, 2)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4)])
def test_slices_pass_any_shape(shape: tuple[int, ...]) -> None:
    stack = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    found = largest(slices(stack), lambda count: [1])
    assert [row[0].value for row in found] == [float(row.max()) for row in stack]


def test_nothing_to_select_from() -> None:
    assert largest(slices(torch.empty(2, 0)), lambda count: [1]) == []
    assert largest(lambda f, share=1: iter(()), lambda count: [1]) == []


def test_the_stack_is_left_alone() -> None:
    stack = torch.tensor([[-2.0, 1.0, -0.0]])
    before = stack.numpy().tobytes()
    largest(slices(stack), lambda count: [1])
    largest(slices(stack), lambda count: [1], iter, signed=True)
    assert stack.numpy().tobytes() == before


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(100, 0.29, 29), (100, 0.58, 58), (3, 0.2, 1), (0, 0.2, 0), (10, 1.0, 10), (10, 0.99, 9), (5, 0.4, 2)],
)
def test_a_share_counts_as_the_decimal_was_meant(count: int, share: float, expected: int) -> None:
    assert share_of(count, share) == expected


@PROPERTY
@given(finite_rows())
def test_rows_are_sorted_upwards(stack: Tensor) -> None:
    assert sort_rows(stack).tolist() == np.sort(stack.numpy(), axis=1).tolist()
    assert sort_rows(stack).tolist() == [sorted(row) for row in stack.tolist()]
