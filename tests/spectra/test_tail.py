"""The exponent of a spectrum's tail against Clauset's method in plain loops, and the `powerlaw` package."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.spectra.tail import FEWEST, power_law


def by_hand(values: list[float]) -> tuple[float, int, float]:
    """(exponent, count, distance) of squares of values: every start tried, as the paper says."""
    squares = sorted(value * value for value in values)
    best = (math.nan, 0, math.inf)
    for start in sorted(set(squares))[:-1]:
        tail = [x for x in squares if x >= start]
        exponent = 1 + len(tail) / sum(math.log(x / start) for x in tail)
        distance = max(abs(1 - (x / start) ** (1 - exponent) - sum(y < x for y in tail) / len(tail)) for x in tail)
        if distance < best[2] - 1e-12:
            best = (exponent, len(tail), distance)
    return best


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(1, 10**6).map(lambda n: n / 1000), min_size=FEWEST, max_size=40))
def test_it_is_clausets_method(values: list[float]) -> None:
    found = power_law(torch.tensor(sorted(values, reverse=True), dtype=torch.float64))
    if len(set(values)) == 1:
        assert math.isnan(found.exponent)
        return
    exponent, count, distance = by_hand(values)
    assert found.distance == pytest.approx(distance, abs=1e-8)
    if found.length == count:  # else two starts are equally good up to rounding
        assert found.exponent == pytest.approx(exponent, rel=1e-6)


def test_a_law_is_found_again() -> None:
    generator = np.random.default_rng(0)
    squares = (1 - generator.random(4000)) ** (-1 / (3.0 - 1))  # p(x) ~ x^-3 from 1 on
    found = power_law(torch.from_numpy(np.sort(np.sqrt(squares))[::-1].copy()))
    assert found.exponent == pytest.approx(3.0, abs=0.15)
    assert found.distance < 0.03


def test_the_size_of_the_values_does_not_count() -> None:
    values = torch.linspace(5, 0.1, 50, dtype=torch.float64) ** 3
    one, other = power_law(values), power_law(values * 1e-9)
    assert other.exponent == pytest.approx(one.exponent)
    assert other.length == one.length


@pytest.mark.parametrize("apart", [0.0, 4e-16])
def test_values_that_differ_by_rounding_alone(apart: float) -> None:
    """Their sum of logarithms rounds to less than as many times the least: no exponent below one, no warning."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        values = 1 + torch.rand(12, generator=generator, dtype=torch.float64)
        values[-3:] = 3 * (1 + apart * torch.rand(3, generator=generator, dtype=torch.float64))
        found = power_law(values.sort(descending=True).values)
        assert 1 < found.exponent < math.inf


def test_few_values_have_no_tail() -> None:
    assert math.isnan(power_law(torch.linspace(2, 1, FEWEST - 1)).exponent)


POWERLAW = os.environ.get("TASKMERGE_POWERLAW")
CODE = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import powerlaw
# version 2 takes no exponent above 3 unless it is told to; WeightWatcher's alphas of layers lie between 2 and 6
wide = {"parameter_ranges": {"alpha": [1, 1000]}} if int(powerlaw.__version__.split(".")[0]) >= 2 else {}
for line in sys.stdin:
    fit = powerlaw.Fit(json.loads(line), verbose=False, **wide)
    print(json.dumps([fit.alpha, fit.xmin, fit.D]))
"""


@pytest.mark.slow
@pytest.mark.rivals
@pytest.mark.skipif(not POWERLAW, reason="TASKMERGE_POWERLAW names a Python that has powerlaw (WeightWatcher's own)")
def test_it_is_what_the_powerlaw_package_fits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    spectra = [torch.linalg.svdvals(torch.randn(m, n, generator=generator).double()) for m, n in ((40, 40), (60, 30))]
    spectra.append(torch.arange(1, 51).double().pow(-0.7))
    lines = "\n".join(json.dumps(s.square().tolist()) for s in spectra)
    told = subprocess.run([str(POWERLAW), "-c", CODE], input=lines, capture_output=True, text=True, check=True)
    for s, line in zip(spectra, told.stdout.splitlines(), strict=True):
        exponent, start, distance = json.loads(line)
        found = power_law(s)
        assert found.exponent == pytest.approx(exponent, rel=1e-6)
        assert found.length == int((s.square() >= start * (1 - 1e-12)).sum())
        assert found.distance == pytest.approx(distance, rel=1e-6)
