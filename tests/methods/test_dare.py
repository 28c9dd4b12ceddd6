"""DARE against its definition, and its mean over seeds."""

import pytest
import torch
from elementwise_cases import PROPERTY, ones, stacks, vectors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.dare import dare
from taskmerge.methods.task_arithmetic import task_arithmetic
from taskmerge.seeds import uniform_at


def drawn(stack: Tensor, seed: int) -> Tensor:
    return torch.stack(
        [uniform_at(seed, str(task), "w", 0, row.numel()).view(row.shape) for task, row in enumerate(stack)]
    )


@PROPERTY
@given(stacks(), st.sampled_from([1e-6, 0.1, 0.5, 0.8, 1.0]), st.integers(0, 99))
def test_dare_is_its_definition(stack: Tensor, density: float, seed: int) -> None:
    found = dare(stack, lambda: drawn(stack, seed), density=density)
    limit = torch.tensor(density, dtype=torch.float32).item()
    chances = drawn(stack, seed).flatten(1).tolist() if stack.dim() > 1 else drawn(stack, seed)[:, None].tolist()
    expected = [
        [value / density if chance < limit else 0.0 for value, chance in zip(row, row_chances, strict=True)]
        for row, row_chances in zip(vectors(stack), chances, strict=True)
    ]
    assert found.dtype == stack.dtype
    assert torch.allclose(
        found.double(), torch.tensor(expected, dtype=torch.float64).view(stack.shape), rtol=1e-6, atol=0
    )


@PROPERTY
@given(stacks())
def test_density_one_drops_nothing(stack: Tensor) -> None:
    assert torch.equal(dare(stack, lambda: drawn(stack, 0), density=1.0), stack)


@pytest.mark.parametrize("density", [0.3, 0.8])
def test_mean_over_seeds_is_task_arithmetic(density: float) -> None:
    stack = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeds = 2000
    total = torch.zeros(50, dtype=torch.float64)
    for seed in range(seeds):
        total += task_arithmetic(dare(stack, lambda s=seed: drawn(stack, s), density=density), ones(stack))
    expected = task_arithmetic(stack, ones(stack))
    deviation = 0.3 * ((1 - density) / density * stack.square().sum(0) / seeds).sqrt()
    assert ((total / seeds - expected).abs() < 5 * deviation).all()


def test_share_kept_is_the_density() -> None:
    stack = torch.ones(2, 100_000)
    kept = (dare(stack, lambda: drawn(stack, 7), density=0.8) != 0).double().mean(1)
    assert ((kept - 0.8).abs() < 5 * (0.8 * 0.2 / 100_000) ** 0.5).all()
    assert not torch.equal(*(dare(stack, lambda: drawn(stack, 7), density=0.8)))
