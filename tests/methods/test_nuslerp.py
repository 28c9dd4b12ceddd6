"""NuSLERP against its definition: whole tensors, rows and columns; on the arc, along it, and without direction."""

import math

import pytest
import torch
from elementwise_cases import PROPERTY, assert_is, ones, stacks, weights_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.nuslerp import arcs, nuslerp, place

SCOPES = st.sampled_from(["tensor", "row", "column"])
Vector = list[float]


def arc_by_hand(a: Vector, b: Vector, t: float) -> Vector:
    """Two vectors, the angle between them by the arctangent."""
    length_a, length_b = (math.sqrt(math.fsum(x * x for x in row)) for row in (a, b))
    near, far = 1 - t, t
    if length_a and length_b:
        cosine = math.fsum((x / length_a) * (y / length_b) for x, y in zip(a, b, strict=True))
        rest = [y / length_b - cosine * x / length_a for x, y in zip(a, b, strict=True)]
        sine = math.sqrt(math.fsum(x * x for x in rest))
        if sine > 1e-3:
            angle = math.atan2(sine, cosine)
            near, far = math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine
    return [near * x + far * y for x, y in zip(a, b, strict=True)]


def nuslerp_by_hand(stack: Tensor, weights: list[float], scope: str) -> Vector:
    total = sum(weights)
    t = weights[1] / total if total else 0.5
    shape, first, second = stack.shape[1:], stack[0].double(), stack[1].double()
    result = torch.full(shape, math.nan, dtype=torch.float64)
    if scope == "tensor" or len(shape) < 2:
        places = [tuple(slice(None) for _ in shape)]
    elif scope == "row":
        places = [
            (*index, slice(None))
            for index in torch.cartesian_prod(*map(torch.arange, shape[:-1])).view(-1, len(shape) - 1).tolist()
        ]
    else:
        places = [
            (slice(None), *index)
            for index in torch.cartesian_prod(*map(torch.arange, shape[1:])).view(-1, len(shape) - 1).tolist()
        ]
    for where in places:
        a, b = first[where], second[where]
        merged = arc_by_hand(a.flatten().tolist(), b.flatten().tolist(), t)
        result[where] = torch.tensor(merged, dtype=torch.float64).view(a.shape)
    return result.flatten().tolist()


@PROPERTY
@given(stacks(least=2, most=2), SCOPES, st.data())
def test_it_is_its_definition(stack: Tensor, scope: str, data: st.DataObject) -> None:
    weights = data.draw(weights_for(2))
    size = 1e-5 if stack.dtype == torch.float32 else 1e-9
    assert_is(nuslerp(stack, weights, scope=scope), nuslerp_by_hand(stack, weights.tolist(), scope), stack, size)


def test_the_place_is_the_second_ones_share_of_the_weights() -> None:
    assert [place(torch.tensor(pair).double()) for pair in ([1, 1], [3, 1], [1, 0], [0, 1])] == [0.5, 0.25, 0.0, 1.0]
    assert place(torch.tensor([1.0, -1.0]).double()) == 0.5  # no share of nothing
    assert place(torch.tensor([3.0, -1.0]).double()) == -0.5  # beyond the first


def test_rows_run_along_the_last_dimension_and_columns_along_the_first() -> None:
    stack = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
    half = math.sqrt(0.5)
    assert nuslerp(stack, ones(stack), scope="row").tolist() == [pytest.approx([half, half]), pytest.approx([2.0, 0.0])]
    rows = nuslerp(stack.mT.contiguous(), ones(stack), scope="column")
    assert torch.allclose(rows, nuslerp(stack, ones(stack), scope="row").mT)
    kernels = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert nuslerp(kernels, ones(kernels), scope="column").shape == (4, 3, 2, 2)


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
@pytest.mark.parametrize("second", [[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0], [0.0, 0.0], [-1.0, 1e-4]])
def test_without_an_arc_it_is_linear(second: list[float], scope: str) -> None:
    stack, weights = torch.tensor([[1.0, 0.0], second]), torch.tensor([0.75, 0.25]).double()
    assert torch.allclose(nuslerp(stack, weights, scope=scope), 0.75 * stack[0] + 0.25 * stack[1])


def test_where_arc_and_chord_meet_they_agree_to_float32() -> None:
    unit = torch.ones((), dtype=torch.float64)
    for angle in (0.9999e-3, 1.0001e-3):
        near, far = (float(part) for part in arcs(unit, unit, math.cos(angle) * unit, 0.3))
        exact = math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle)
        assert (near, far) == pytest.approx(exact, rel=2e-7)


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_tensors_without_entries_stay_so(scope: str) -> None:
    for shape in ((0,), (2, 0), (0, 2), (2, 0, 3)):
        stack = torch.zeros(2, *shape)
        assert nuslerp(stack, ones(stack), scope=scope).shape == shape


def test_many_rows_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(3))
    whole = nuslerp(stack, ones(stack), scope="row")
    monkeypatch.setattr("taskmerge.methods.nuslerp.SLICE", 20)
    assert torch.equal(nuslerp(stack, ones(stack), scope="row"), whole)
