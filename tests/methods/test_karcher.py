"""The Karcher mean against its definition: plain vectors on the sphere, logarithms and exponentials in float64."""

import math

import pytest
import torch
from elementwise_cases import PROPERTY, assert_is, ones, stacks, vectors, weights_for
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.karcher import karcher
from taskmerge.methods.slerp import slerp

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def length(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def combined(pairs: list[tuple[float, Vector]]) -> Vector:
    return [math.fsum(c * row[i] for c, row in pairs) for i in range(len(pairs[0][1]))]


def logarithm(mean: Vector, x: Vector) -> Vector:
    """The tangent at `mean` that leads to x; zero towards the opposite of the mean."""
    cosine = max(-1.0, min(1.0, dot(mean, x)))
    rest = combined([(1.0, x), (-cosine, mean)])
    return (
        combined([(math.atan2(length(rest), cosine) / length(rest), rest)]) if length(rest) > 1e-6 else [0.0] * len(x)
    )


def karcher_by_hand(rows: list[Vector], weights: list[float]) -> Vector:
    total = math.fsum(weights)
    parts = [weight / total for weight in weights]
    pointing = [
        (part, combined([(1 / length(row), row)])) for part, row in zip(parts, rows, strict=True) if length(row)
    ]
    average_by_hand = combined(list(zip(parts, rows, strict=True)))
    if not pointing:
        return average_by_hand
    start, share = combined(pointing), math.fsum(part for part, _ in pointing)
    if length(start) <= 1e-6 * math.fsum(abs(part) for part, _ in pointing) or abs(share) <= 1e-6:
        return average_by_hand
    mean = combined([(math.copysign(1, share) / length(start), start)])
    for _ in range(100):
        step = combined([(part / share, logarithm(mean, x)) for part, x in pointing])
        if length(step) <= 1e-10:
            break
        mean = combined([(math.cos(length(step)), mean), (math.sin(length(step)) / length(step), step)])
        mean = combined([(1 / length(mean), mean)])
    return combined([(math.fsum(part * length(row) for part, row in zip(parts, rows, strict=True)), mean)])


@PROPERTY
@given(stacks(rich=True), st.data())
def test_it_is_its_definition(stack: Tensor, data: st.DataObject) -> None:
    weights = data.draw(weights_for(len(stack)).filter(lambda drawn: bool((drawn >= 0).all() and drawn.sum() > 0)))
    expected = karcher_by_hand(vectors(stack), weights.tolist())
    assert_is(karcher(stack, weights), expected, stack, tolerance=1e-5 if stack.dtype == torch.float32 else 1e-7)


def spread(tasks: int, size: int, seed: int, angle: float = 0.5) -> Tensor:
    """Vectors within a cone, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0)
    rest = torch.nn.functional.normalize(torch.randn(tasks, size, generator=generator, dtype=torch.float64), dim=1)
    lengths = torch.rand(tasks, 1, generator=generator, dtype=torch.float64) + 0.5
    return lengths * (math.cos(angle) * axis + math.sin(angle) * rest)


@PROPERTY
@given(st.integers(2, 5), st.integers(0, 99), st.data())
def test_at_the_mean_the_pulls_of_all_experts_cancel(tasks: int, seed: int, data: st.DataObject) -> None:
    """The property that defines the mean, whatever way led there; and the length is the mean length."""
    weights = torch.tensor(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=tasks, max_size=tasks)))
    stack = spread(tasks, 12, seed)
    merged = karcher(stack, weights.double())
    lengths = torch.linalg.vector_norm(stack, dim=1)
    assert float(merged.norm()) == pytest.approx(float((weights * lengths).sum() / weights.sum()), rel=1e-12)
    mean = (merged / merged.norm()).tolist()
    pulls = [(w, logarithm(mean, (row / row.norm()).tolist())) for w, row in zip(weights.tolist(), stack, strict=True)]
    assert length(combined(pulls)) < 1e-9


@PROPERTY
@given(st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.75]))
def test_the_mean_of_two_is_the_point_on_their_arc(seed: int, t: float) -> None:
    stack = spread(2, 9, seed)
    assume(abs(float(torch.nn.functional.cosine_similarity(*stack, dim=0))) < 0.999)
    weights = torch.tensor([1 - t, t], dtype=torch.float64)
    arc = slerp(torch.nn.functional.normalize(stack, dim=1), t=t)
    lengths = torch.linalg.vector_norm(stack, dim=1)
    assert torch.allclose(karcher(stack, weights), arc * (weights @ lengths), rtol=1e-9, atol=1e-12)


def test_more_iterations_and_a_smaller_tolerance_come_nearer() -> None:
    stack = spread(4, 20, 1, angle=1.2)
    exact = karcher(stack, ones(stack), iterations=1000, tolerance=0.0)
    far = [float((karcher(stack, ones(stack), iterations=count) - exact).norm()) for count in (1, 3, 10)]
    assert far[0] > 10 * far[1] > 100 * far[2]
    assert float((karcher(stack, ones(stack), tolerance=1e-3) - exact).norm()) > 1e-7
    assert float((karcher(stack, ones(stack)) - exact).norm()) < 1e-9


def test_directions_that_cancel_give_the_average() -> None:
    for rows in ([[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [-3.0, -6.0]], [[0.0, 0.0], [0.0, 0.0]], [[2.0], [-3.0]]):
        stack = torch.tensor(rows)
        assert torch.allclose(karcher(stack, ones(stack)), average(stack, ones(stack)))
    thirds = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]], dtype=torch.float64)
    assert float(karcher(thirds, ones(thirds)).abs().max()) < 1e-12


def test_an_expert_opposite_to_the_mean_has_no_say_in_its_direction() -> None:
    stack = torch.tensor([[2.0, 0.0], [4.0, 0.0], [-3.0, 0.0]])
    assert karcher(stack, ones(stack)).tolist() == pytest.approx([3.0, 0.0])


def test_a_zero_tensor_shortens_the_mean_and_turns_it_nowhere() -> None:
    stack = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert karcher(stack, ones(stack)).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])


def test_negative_weights_turn_away_and_those_that_cancel_give_the_average() -> None:
    stack = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    away = karcher(stack, torch.tensor([-1.0, 0.0, 2.0]).double())
    assert away.tolist() == pytest.approx([-3.0, 0.0])
    cancelling = torch.tensor([1.0, -1.0, 1.0]).double()
    assert torch.allclose(karcher(stack, cancelling), average(stack, cancelling))


def test_what_experts_share_is_rounded_once() -> None:
    """Fine-tunings that differ in the sixth digit: their difference from the average survives float32."""
    generator = torch.Generator().manual_seed(0)
    base, moves = torch.randn(5000, generator=generator), torch.randn(3, 5000, generator=generator) * 1e-6
    stack = base + moves
    exact = karcher(stack.double(), ones(stack))
    assert float((karcher(stack, ones(stack)) - exact).abs().max()) <= float(exact.abs().max()) * 2**-24


def test_huge_and_tiny_tensors_keep_their_angles() -> None:
    for size, dtype in ((1e30, torch.float32), (1e-30, torch.float32), (1e100, torch.float64), (1e-100, torch.float64)):
        stack = size * torch.eye(2, dtype=dtype)
        assert torch.allclose(karcher(stack, ones(stack)) / size, torch.full((2,), math.sqrt(0.5), dtype=dtype))
