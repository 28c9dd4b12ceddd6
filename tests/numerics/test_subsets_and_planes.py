"""Subsets one change apart, and planes from inner products, against the plain definitions."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.numerics.gray import gray_subsets
from taskmerge.numerics.plane import plane_of


@settings(deadline=None)
@given(st.integers(1, 9))
def test_every_subset_once_and_one_change_at_a_time(count: int) -> None:
    before: set[int] = set()
    seen = []
    for changed, members in gray_subsets(count):
        assert before ^ {changed} == set(members)
        before = set(members)
        seen.append(members)
    assert len(seen) == len(set(seen)) == 2**count - 1
    assert set(seen) == {own for size in range(1, count + 1) for own in combinations(range(count), size)}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(3, 7))
def test_the_plane_is_that_of_principal_components(seed: int, count: int) -> None:
    points = torch.randn(count, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    origin = torch.randn(20, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    plane = plane_of((points - origin) @ (points - origin).T)
    assert plane is not None
    centred = points - points.mean(0)
    _, s, vt = torch.linalg.svd(centred, full_matrices=False)
    axes = plane.combination @ centred
    torch.testing.assert_close(axes @ axes.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close((axes * vt[:2]).sum(1).abs(), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(plane.coordinates, centred @ axes.T)
    off = (centred - plane.coordinates @ axes).norm(dim=1)
    torch.testing.assert_close(plane.off, off, rtol=1e-6, atol=1e-6)
    shares = s.square()[:2] / s.square().sum()
    assert plane.shares == pytest.approx(shares.tolist())
    for axis in range(2):
        farthest = plane.coordinates[:, axis].abs().argmax()
        assert plane.coordinates[farthest, axis] > 0


def test_points_on_a_line_have_no_plane() -> None:
    line = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 6.0], [-1.0, -2.0]], dtype=torch.float64)
    assert plane_of(line @ line.T) is None
    assert plane_of(torch.eye(2, dtype=torch.float64)) is None
