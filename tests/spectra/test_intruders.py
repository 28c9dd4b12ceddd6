"""Intruder dimensions against the paper's algorithm, with whole decompositions in float64."""

import pytest
import torch
from torch import Tensor

from taskmerge.spectra.intruders import DIRECTIONS, FAR, known, nearest


def by_hand(base: Tensor, expert: Tensor) -> Tensor:
    before = torch.linalg.svd(base.double(), full_matrices=False).U
    after = torch.linalg.svd(expert.double(), full_matrices=False).U
    return (after[:, :DIRECTIONS].mT @ before).abs().amax(1)


@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60), (12, 5)])
def test_they_are_the_papers(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator) * torch.logspace(0, -1, shape[1])
    for strength in (0.01, 0.5, 3.0):
        expert = base + strength * torch.randn(shape, generator=generator) / 10
        torch.testing.assert_close(nearest(known(base), expert).double(), by_hand(base, expert), rtol=1e-3, atol=1e-3)


def test_a_strong_new_direction_is_one_and_none_else() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.diag(torch.linspace(2, 1, 40))
    new = torch.outer(torch.randn(40, generator=generator), torch.randn(40, generator=generator))
    found = nearest(known(base), base + 20 * new / new.norm())
    assert (found < FAR).tolist()[0]
    assert (nearest(known(base), base) > 0.999).all()


def test_an_expert_of_a_zero_base_is_all_intruders() -> None:
    found = nearest(known(torch.zeros(8, 6)), torch.eye(8, 6))
    assert found.tolist() == [0.0] * 6
    assert len(nearest(known(torch.zeros(8, 6)), torch.zeros(8, 6))) == 0
