"""Chance levels are the means over many random draws."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from taskmerge.numerics.spectral import Factors
from taskmerge.spectra import chance
from taskmerge.spectra.between import Beside, Overlaps, alignment, overlaps
from taskmerge.spectra.entries import counts


def orthonormal(side: int, k: int, generator: torch.Generator) -> Tensor:
    """A random subspace: QR of normal entries, signs fixed, is even (Haar)."""
    q, r = torch.linalg.qr(torch.randn(side, k, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def drawn(values: Sequence[Tensor], shape: tuple[int, int], generator: torch.Generator) -> list[Factors]:
    m, n = shape
    return [Factors(orthonormal(m, len(s), generator), s, orthonormal(n, len(s), generator).mT) for s in values]


SHAPES = [((30, 40), (3, 3, 3)), ((50, 30), (4, 2, 5)), ((36, 36), (6, 6))]


@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_of_overlaps_and_interference(shape: tuple[int, int], sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.linspace(2, 0.5, size, dtype=torch.float64) for size in sizes]
    found = [overlaps(drawn(values, shape, generator), shape) for _ in range(600)]
    apart = ~torch.eye(len(sizes), dtype=torch.bool)
    measures: dict[str, Callable[[Overlaps], Beside]] = {
        "left": lambda one: one.left, "right": lambda one: one.right, "interference": lambda one: one.interference,
    }  # fmt: skip
    for name, of in measures.items():
        draws = torch.stack([of(one).value[apart] for one in found])
        level = of(found[0]).chance[apart]
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - level).abs() < 4 * error).all(), name
        assert (error < 0.05 * level).all(), name  # the draws are many enough to tell


@pytest.mark.parametrize(("shape", "sizes"), [*SHAPES, ((36, 36), (3, 3, 3, 3))])
@pytest.mark.parametrize("steep", [False, True])
def test_of_singular_task_interference(shape: tuple[int, int], sizes: tuple[int, ...], steep: bool) -> None:
    """4,000 draws at once; they tell half a percent, the closed form is good to one or two."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.logspace(0, -2 if steep else -0.1, size, dtype=torch.float64) for size in sizes]
    own = torch.block_diag(*(torch.ones(size, size, dtype=torch.bool) for size in sizes))
    apart = []
    for side in shape:
        draws = [torch.randn(4000, side, size, generator=generator, dtype=torch.float64) for size in sizes]
        vectors = torch.cat([torch.linalg.qr(one).Q for one in draws], dim=-1)
        apart.append((vectors.mT @ vectors).masked_fill(own, 0))
    mean = ((apart[0] * torch.cat(values)) @ apart[1]).abs().sum((-1, -2)).mean()
    assert chance.singular_interference(values, shape) == pytest.approx(float(mean), rel=0.02)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [5.0, 0.1, 1e-3], [0.0, 2.0]])
def test_mean_roots_of_weighted_squares(weights: list[float]) -> None:
    found = chance.mean_root(torch.tensor(weights))
    z = torch.randn(400_000, len(weights), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert found == pytest.approx(float((z.square() @ torch.tensor(weights).double()).sqrt().mean()), rel=0.005)


def test_mean_roots_in_closed_form() -> None:
    for freedom in (1, 2, 7, 100):  # the mean of a chi distribution
        exact = math.sqrt(2) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
        assert chance.mean_root(torch.ones(freedom)) == pytest.approx(exact, rel=1e-5)
    assert chance.mean_root(torch.zeros(3)) == 0


@pytest.mark.parametrize("lengths", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5, 2.0), (1.0, 1.0)])
def test_of_cosines_of_centred_vectors(lengths: tuple[float, ...]) -> None:
    """Random directions of many entries, centred: what is left of every cosine is what centring put there."""
    generator = torch.Generator().manual_seed(3)
    draws = []
    for _ in range(30):
        rows = torch.randn(len(lengths), 20_000, generator=generator, dtype=torch.float64)
        rows *= torch.tensor(lengths, dtype=torch.float64)[:, None] / rows.norm(dim=1, keepdim=True)
        found = counts(rows - rows.mean(0)).cosines(centred=True)
        draws.append((found.value, found.chance))
    values, levels = (torch.stack(part).mean(0) for part in zip(*draws, strict=True))
    torch.testing.assert_close(values, levels, rtol=0, atol=0.006)
    assert all(math.isclose(float(levels[i, i]), 1) for i in range(len(lengths)))


def test_equal_lengths_point_away_from_each_other() -> None:
    for tasks in (2, 3, 8):
        level = chance.centred_cosines(torch.full((tasks,), 2.0))
        assert float(level[0, 1]) == pytest.approx(-1 / (tasks - 1))


@pytest.mark.parametrize("cosine", [-0.7, -0.2, 0.0, 0.5])
def test_of_sign_conflicts(cosine: float) -> None:
    generator = torch.Generator().manual_seed(4)
    first, other = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    second = cosine * first + math.sqrt(1 - cosine**2) * other
    first[torch.rand(len(first), generator=generator) < 0.3] = 0
    found = counts(torch.stack([first, second]))
    level = found.conflicts(torch.full((2, 2), cosine)).chance
    assert float(found.conflicts(level).value[0, 1]) == pytest.approx(float(level[0, 1]), abs=0.004)


def test_of_the_alignment_with_a_merged_checkpoint() -> None:
    generator = torch.Generator().manual_seed(5)
    stack = torch.randn(2, 30, 20, generator=generator, dtype=torch.float64)
    draws = []
    for _ in range(400):
        merged = Factors(orthonormal(30, 6, generator), torch.ones(6).double(), torch.zeros(6, 20).double())
        draws.append(alignment(merged, stack, (30, 20)).share)
    assert float(draws[0].chance[0]) == 0.2
    torch.testing.assert_close(torch.stack([one.value for one in draws]).mean(0), draws[0].chance, rtol=0, atol=0.005)
