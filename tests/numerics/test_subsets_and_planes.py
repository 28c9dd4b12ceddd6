"""Subsets one change apart, their Gram matrices, and planes from inner products, against the plain definitions."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.numerics.gray import gray_subsets
from taskmerge.numerics.plane import plane_of
from taskmerge.numerics.subset_grams import centred_grams, leading_of, pair_gram, places_of_pairs


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
@given(st.integers(0, 99), st.sampled_from([(7, 3), (3, 7), (4, 4)]), st.data())
def test_grams_of_subsets_are_those_of_centred_matrices(seed: int, shape: tuple[int, int], data: st.DataObject) -> None:
    count = 5
    stack = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).float()
    stack -= stack.mean(0)
    members = data.draw(st.sets(st.integers(0, 4), min_size=1).map(sorted))
    pairs = torch.stack([pair_gram(stack[first], stack[second]) for first, second in places_of_pairs(count)])
    own = stack[members].double()
    own -= own.mean(0)
    for found, matrix in zip(centred_grams(pairs, count, members), own, strict=True):
        torch.testing.assert_close(found, pair_gram(matrix, matrix), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_triplets_of_a_known_gram_matrix_are_the_matrixs(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    wanted = (u[:, :3] * s[:3]) @ vt[:3]
    for gram in (pair_gram(matrix, matrix), torch.eye(8, dtype=torch.float64)):  # the second tells nothing of it
        found = leading_of(matrix, gram, 3)
        product = found.far.mT @ found.near if shape[0] >= shape[1] else found.near.mT @ found.far
        assert (product.double() - wanted).norm() <= 1e-5 * wanted.norm()
    assert len(leading_of(torch.zeros(shape), torch.zeros(8, 8, dtype=torch.float64), 3).s) == 0


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
