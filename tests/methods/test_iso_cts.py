"""Iso-CTS against its definition, and the identities it must obey."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectral_cases import (
    COEFFICIENTS,
    EXACT,
    PROPERTY,
    Case,
    assert_near,
    cases,
    conditioning,
    embedded,
    gap,
    nearly_shared,
    polar_factor,
    whitening,
    with_spectrum,
)
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.iso_c import iso_c
from taskmerge.methods.iso_cts import flattened, iso_cts, split
from taskmerge.methods.registry import find
from taskmerge.numerics.polar import DROPPED_NOTE, SENSITIVE_NOTE
from taskmerge.numerics.spectral import TaskMatrices

NEGLIGIBLE = 1e-9
SHAPES = [(12, 12), (20, 9), (9, 20), (33, 16), (5, 8)]


class Pieces:
    """The reference's intermediate results: columns of both sides, values, and how well they are defined."""

    def __init__(self, arrays: list[np.ndarray], full: int, fraction: float) -> None:
        self.left: list[np.ndarray] = []
        self.values: list[float] = []
        self.right: list[np.ndarray] = []
        self.posed = 1.0
        tasks = len(arrays)
        share = round((full - int(fraction * full + 1e-9)) / tasks)
        while share * tasks > full:
            share -= 1
        common = full - share * tasks
        total = sum(arrays)
        size = max(np.linalg.norm(array, 2) for array in arrays)
        u, s, _ = np.linalg.svd(total, full_matrices=False)
        common = min(common, int((s > NEGLIGIBLE * size).sum()))
        for array in arrays:
            rest = array.copy()
            for i in range(common):
                rest -= np.outer(u[:, i], u[:, i] @ array)
            self._take(rest, share, np.linalg.norm(array, 2))
        self._take(total, common, size)

    def _take(self, array: np.ndarray, count: int, size: float) -> None:
        u, s, vt = np.linalg.svd(array, full_matrices=False)
        kept = [i for i in range(min(count, len(s))) if s[i] > NEGLIGIBLE * size]
        self.left += [u[:, i] for i in kept]
        self.values += [s[i] for i in kept]
        self.right += [vt[i] for i in kept]
        if kept:
            self.posed = min(self.posed, gap(array, len(kept)), s[kept[-1]] / s[0])

    def result(self, full: int) -> np.ndarray:
        left, right = polar_factor(np.array(self.left).T), polar_factor(np.array(self.right).T)
        return sum(self.values) / full * left @ right.T

    def well_posed(self) -> float:
        """The least of gaps, weakest kept directions and conditions of the concatenated sides."""
        return self.posed * min(whitening(np.array(self.left).T), whitening(np.array(self.right).T))


@PROPERTY
@given(cases(dtypes=[torch.float64], shapes=SHAPES), st.sampled_from([0.8, 0.5, 0.0, 1.0]))
def test_iso_cts_is_its_definition(case: Case, fraction: float) -> None:
    assume(case.stack.any())
    pieces = Pieces(case.arrays, case.full, fraction)
    posed = pieces.well_posed()
    assume(posed > 1e-4)
    before = case.stack.clone()
    result = iso_cts(case.matrices, common_fraction=fraction)
    assert torch.equal(case.stack, before)
    assert_near(result, pieces.result(case.full), 1e-11 / posed + 1e-9)


@PROPERTY
@given(nearly_shared(), st.sampled_from(EXACT))
def test_nearly_shared_directions_are_kept_and_noted(case: tuple[Tensor, float], dtype: torch.dtype) -> None:
    exact, share = case
    stack = exact.to(dtype)
    full = min(stack.shape[1:])
    expected = Pieces([row.double().numpy() for row in stack], full, 0.0).result(
        full
    )  # the tasks' own directions alone
    assert flattened(TaskMatrices(stack), 0.0).notes == (SENSITIVE_NOTE,)
    rounding = 1e-15 / share**2 if dtype == torch.float64 else 5e-7 / share  # of the Gram matrix, of the vectors
    assert_near(iso_cts(TaskMatrices(stack), common_fraction=0.0), expected, rounding + 1e-9)


@PROPERTY
@given(nearly_shared(shares=(-9.0, -6.5)))
def test_shared_directions_are_dropped_and_noted(case: tuple[Tensor, float]) -> None:
    stack, _ = case
    full = min(stack.shape[1:])
    expected = Pieces([row.numpy() for row in stack], full, 0.0).result(full)
    assert flattened(TaskMatrices(stack), 0.0).notes == (DROPPED_NOTE,)
    assert_near(iso_cts(TaskMatrices(stack), common_fraction=0.0), expected, 1e-7)


@PROPERTY
@given(st.integers(0, 2**32), st.sampled_from([(20, 12), (12, 20), (16, 16)]), st.integers(1, 4))
def test_float32_is_near_float64(seed: int, shape: tuple[int, int], tasks: int) -> None:
    stack = torch.randn(tasks, *shape, generator=torch.Generator().manual_seed(seed))
    posed = Pieces([row.double().numpy() for row in stack], min(shape), 0.8).well_posed()
    assume(posed > 1e-3)
    result = iso_cts(TaskMatrices(stack))
    assert result.dtype == torch.float32
    assert_near(result, iso_cts(TaskMatrices(stack.double())), 3e-6 / posed)


@pytest.mark.parametrize(
    ("full", "tasks", "fraction", "expected"),
    [
        (768, 8, 0.8, (616, 19)),  # 614 asked, 154 / 8 = 19.25
        (10, 1, 0.8, (8, 2)),
        (10, 4, 0.8, (10, 0)),  # 2 / 4 = 0.5 is rounded to the even 0
        (30, 4, 0.8, (22, 2)),  # 6 / 4 = 1.5 is rounded to the even 2
        (32, 20, 0.8, (32, 0)),
        (5, 3, 0.0, (2, 1)),  # 5 / 3 = 1.67 would round to 2, and six directions do not fit into five
        (100, 1, 0.29, (29, 71)),  # 0.29 x 100 is 28.999... in binary
        (1, 3, 0.8, (1, 0)),
        (6, 3, 0.0, (0, 2)),
        (6, 3, 1.0, (6, 0)),
    ],
)
def test_directions_are_split_as_by_the_authors(
    full: int, tasks: int, fraction: float, expected: tuple[int, int]
) -> None:
    assert split(full, tasks, fraction) == expected


@PROPERTY
@given(cases(dtypes=EXACT, tasks=(1, 4), shapes=[(3, 5), (12, 9)]))
def test_without_task_directions_it_is_iso_c(case: Case) -> None:
    total = sum(case.arrays)
    assume(not total.any() or conditioning(total) > 1e-3)
    scale = max(np.linalg.norm(total), 1e-3 * np.linalg.norm(case.arrays))
    assert_near(iso_cts(case.matrices, common_fraction=1.0), iso_c(case.matrices), 1e-4, scale)


@PROPERTY
@given(cases(dtypes=[torch.float64], shapes=SHAPES))
def test_the_spectrum_is_flat_where_no_direction_is_dropped(case: Case) -> None:
    assume(case.stack.any())
    pieces = Pieces(case.arrays, case.full, 0.8)
    for side in (pieces.left, pieces.right):
        assume(np.linalg.svd(np.array(side).T, compute_uv=False)[-1] > 1e-2)
    flat = torch.zeros(case.full).double()
    flat[: len(pieces.values)] = sum(pieces.values) / case.full
    assert_near(torch.linalg.svdvals(iso_cts(case.matrices)), flat, 1e-6)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(20, 15), (60, 90)])
def test_a_remainder_of_rounding_gives_no_direction(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Equal task vectors of rank 2, rounded to their dtype, lie inside the common subspace: nothing else is there."""
    generator = torch.Generator().manual_seed(9)
    one = with_spectrum(shape, torch.tensor([1.0, 0.5]).double(), generator).to(dtype)
    result = iso_cts(TaskMatrices(one.repeat(3, 1, 1)))
    u, _, vt = np.linalg.svd(one.double().numpy(), full_matrices=False)
    assert_near(result, 3 * 1.5 / min(shape) * u[:, :2] @ vt[:2], 20 * torch.finfo(dtype).eps + 1e-9)


def test_weak_common_directions_are_projected_out_exactly() -> None:
    """A spectrum over eight decades and no more directions than the common part takes: none is left for the task."""
    values = torch.logspace(0, -8, 8, dtype=torch.float64)
    one = with_spectrum((14, 10), values, torch.Generator().manual_seed(3))
    result = torch.linalg.svdvals(iso_cts(TaskMatrices(one[None])))
    assert_near(result[:8], torch.full((8,), float(values.sum()) / 10, dtype=torch.float64), 1e-6)
    assert float(result[8]) < 1e-9


def test_what_is_left_where_task_vectors_cancel_is_no_common_direction() -> None:
    one = torch.randn(12, 12, generator=torch.Generator().manual_seed(5))
    other = torch.nextafter(-one, torch.zeros(()))
    assert float(iso_cts(TaskMatrices(torch.stack([one, other]))).norm()) < 1e-4 * float(one.norm())


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (4, 4)])
def test_zero_task_vectors_give_zero(shape: tuple[int, int]) -> None:
    assert not iso_cts(TaskMatrices(torch.zeros(3, *shape))).any()


@PROPERTY
@given(cases(dtypes=[torch.float64], shapes=SHAPES), COEFFICIENTS)
def test_scaling_and_reordering_carry_over(case: Case, coefficient: float) -> None:
    assume(case.stack.any())
    posed = Pieces(case.arrays, case.full, 0.8).well_posed()
    assume(posed > 1e-4)
    expected, tolerance = iso_cts(case.matrices), 1e-11 / posed + 1e-9
    assert_near(iso_cts(TaskMatrices(4 * case.stack)) / 4, expected, tolerance)
    assert_near(iso_cts(TaskMatrices(case.stack.flip(0))), expected, tolerance)
    assert_near(iso_cts(case.matrices, coefficient=coefficient), coefficient * expected, tolerance)


def test_the_projection_is_on_the_left_only_so_transposing_is_no_symmetry() -> None:
    stack = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = iso_cts(TaskMatrices(stack.mT.contiguous())).mT
    assert float((turned - iso_cts(TaskMatrices(stack))).norm() / turned.norm()) > 0.01


@PROPERTY
@given(embedded())
def test_a_compressed_stack_stands_for_the_whole_matrices(case: tuple[Tensor, Tensor, Tensor]) -> None:
    cores, left, right = case
    whole = left @ cores @ right.mT
    full = min(whole.shape[1:])
    fraction = 0.1  # two common directions of 20 or 24: the cores have more
    posed = Pieces([row.numpy() for row in whole], full, fraction).well_posed()
    assume(posed > 1e-4)
    small = iso_cts(TaskMatrices(cores, full=full), common_fraction=fraction)
    assert_near(left @ small @ right.mT, iso_cts(TaskMatrices(whole), common_fraction=fraction), 1e-7)


def test_other_tensors_are_averaged_and_weights_refused() -> None:
    declared = find("iso-cts")
    assert declared.elsewhere is average
    assert declared.space == "delta"
    assert not declared.weighted
