"""Small stacks of task vectors with exact ties and cancellations, and what the plain-loop references share."""

import itertools
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TypeVar

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics.selection import Scan, part_of

PROPERTY = settings(max_examples=40, deadline=None)
DENSITIES = st.sampled_from([0.01, 0.1, 0.2, 0.29, 0.5, 0.58, 0.9, 1.0])
R = TypeVar("R")


@st.composite
def stacks(draw: st.DrawFn, *, least: int = 1, most: int = 4, rich: bool = True) -> Tensor:
    """[T, *shape] in float32 or float64: quarters, whose sums are exact and often zero, or normal numbers."""
    tasks = draw(st.integers(least, most))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if rich and draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        return torch.randn(tasks, *shape, generator=generator).to(dtype)
    quarters = draw(hnp.arrays(np.int8, (tasks, *shape), elements=st.integers(-5, 5)))
    return torch.from_numpy(quarters.astype(np.float64) / 4).to(dtype)


def weights_for(tasks: int) -> st.SearchStrategy[Tensor]:
    """Ones, or weights whose products with quarters are exact."""
    drawn = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=tasks, max_size=tasks)
    return (st.just([1.0] * tasks) | drawn).map(lambda values: torch.tensor(values, dtype=torch.float64))


def ones(stack: Tensor) -> Tensor:
    return torch.ones(len(stack), dtype=torch.float64)


def vectors(stack: Tensor) -> list[list[float]]:
    """The rows as plain lists of Python floats."""
    return [row.double().flatten().tolist() for row in stack]


def share(density: float, count: int) -> int:
    """floor(density * count) as the decimal was meant."""
    return math.floor(Decimal(repr(density)) * count)


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def scan_of(*stacks: Tensor, cuts: int = 3) -> Scan:
    """A model of several tensors as the engine would pass it: flat slices of a few elements."""
    flat = [stack.reshape(len(stack), -1) for stack in stacks]

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        pieces = itertools.chain.from_iterable(one.split(cuts, dim=1) for one in flat)
        return (f(part_of(piece, share)) for piece in pieces if piece.numel())

    return scan


def assert_is(found: Tensor, expected: list[float], like: Tensor, tolerance: float = 1e-6) -> None:
    """Shape and dtype of one row of `like`, values those of a reference in float64."""
    assert found.shape == like.shape[1:]
    assert found.dtype == like.dtype
    size = max([1.0, *map(abs, expected)])
    worst = max([abs(a - b) for a, b in zip(found.double().flatten().tolist(), expected, strict=True)], default=0.0)
    assert worst <= (tolerance if like.dtype == torch.float32 else 1e-12) * size, (found, expected)
