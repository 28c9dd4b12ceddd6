"""Model Stock against its definition."""

import itertools
import math

import torch
from elementwise_cases import PROPERTY, assert_is, stacks, vectors
from hypothesis import given
from torch import Tensor

from taskmerge.methods.model_stock import model_stock


def stock_by_hand(rows: list[list[float]]) -> list[float]:
    cosines = []
    for a, b in itertools.combinations(rows, 2):
        length = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
        cosines.append(math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0)
    cosine, count = math.fsum(cosines) / len(cosines), len(rows)
    below = 1 + (count - 1) * cosine
    t = min(1.0, max(0.0, count * cosine / below)) if cosine > 1e-12 else 0.0
    return [t * math.fsum(column) / count for column in zip(*rows, strict=True)]


@PROPERTY
@given(stacks(least=2))
def test_model_stock_is_its_definition(stack: Tensor) -> None:
    assert_is(model_stock(stack), stock_by_hand(vectors(stack)), stack)


def test_equal_experts_give_that_expert_and_orthogonal_ones_the_base() -> None:
    same = torch.tensor([[1.0, 2.0, -3.0]] * 3)
    assert torch.allclose(model_stock(same), same[0])
    assert model_stock(torch.eye(3)).tolist() == [0.0, 0.0, 0.0]


def test_opposed_task_vectors_give_the_base_not_its_far_side() -> None:
    """Unclamped, t of two task vectors at cosine -0.9 is -18."""
    opposed = torch.tensor([[1.0, 0.0], [-0.9, math.sqrt(1 - 0.81)]])
    assert model_stock(opposed).tolist() == [0.0, 0.0]
    assert model_stock(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])).tolist() == [0.0, 0.0]


def test_tiny_task_vectors_keep_their_cosine() -> None:
    small = torch.tensor([[1e-5, 0.0], [1e-5, 0.0]])
    assert torch.allclose(model_stock(small), small[0])
