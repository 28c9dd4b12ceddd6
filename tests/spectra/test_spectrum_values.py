"""Ranks and energies of spectra against their definitions, by plain loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics.rank import Rank
from taskmerge.spectra.values import spectra

RATIOS = tuple(map(Rank.parse, ("0.1", "0.5", "1.0", "3")))
positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


def sorted_values(values: list[float]) -> Tensor:
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


@settings(deadline=None)
@given(values=positive, beyond=st.integers(0, 5))
def test_one_spectrum_is_its_definitions(values: list[float], beyond: int) -> None:
    s = sorted(values, reverse=True)
    full = len(s) + beyond
    found = spectra([sorted_values(values)], full, RATIOS)
    energy, total = sum(x * x for x in s), sum(s)
    assert float(found.norm[0]) == pytest.approx(math.sqrt(energy))
    assert float(found.largest[0]) == s[0]
    assert int(found.components[0]) == len(s)
    assert float(found.stable_rank[0]) == pytest.approx(energy / s[0] ** 2)
    assert float(found.entropy_rank[0]) == pytest.approx(math.exp(-sum(x / total * math.log(x / total) for x in s)))
    for place, rank in enumerate(RATIOS):
        k = rank.resolve(full)
        assert float(found.energy[0, place]) == pytest.approx(sum(x * x for x in s[:k]) / energy)
        assert float(found.nuclear[0, place]) == pytest.approx(sum(s[:k]) / total)
    assert found.values.tolist() == [[*s, *[0.0] * beyond]]


@settings(deadline=None)
@given(values=positive)
def test_the_energy_rank_is_the_least_with_95_percent(values: list[float]) -> None:
    s = sorted(values, reverse=True)
    k = int(spectra([sorted_values(values)], len(s), RATIOS).energy_rank[0])
    energies = [sum(x * x for x in s[:count]) / sum(x * x for x in s) for count in range(len(s) + 1)]
    assert energies[k] >= 0.95 - 1e-9
    assert energies[k - 1] < 0.95 + 1e-9


@settings(deadline=None)
@given(values=positive, factor=st.floats(1e-3, 1e3))
def test_scaling_changes_lengths_alone(values: list[float], factor: float) -> None:
    one, other = (spectra([sorted_values(values) * by], len(values), RATIOS) for by in (1.0, factor))
    assert torch.allclose(other.norm, factor * one.norm)
    for name in ("entropy_rank", "stable_rank", "energy", "nuclear"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-12)


def test_a_zero_matrix_has_no_rank_and_no_shares() -> None:
    found = spectra([torch.zeros(0), torch.ones(4)], 4, RATIOS)
    for name in ("norm", "largest", "components", "energy_rank", "entropy_rank", "stable_rank", "tail"):
        assert float(getattr(found, name)[0]) == 0
    assert found.energy[0].isnan().all()
    assert found.nuclear[0].isnan().all()
    assert found.exponent[0].isnan()
    assert found.energy[1].tolist() == [0.25, 0.5, 1.0, 0.75]
    assert float(found.entropy_rank[1]) == pytest.approx(4)
