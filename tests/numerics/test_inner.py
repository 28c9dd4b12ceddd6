"""Inner products against plain sums."""

import math

import pytest
import torch

from taskmerge.numerics.inner import SLICE, gram


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 3, 4), (1, 0), (2, SLICE + 3)])
def test_all_pairs_are_plain_sums(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = [row.double().flatten().tolist() for row in stack]
    found = gram(stack)
    assert found.dtype == torch.float64
    expected = [[math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-9)


def test_small_entries_beside_large_ones_are_not_lost() -> None:
    stack = torch.ones(1, 1001)
    stack[0, 0] = 1e6
    assert float(gram(stack)) == 1e12 + 1000
