"""Powers of two change no digit, and sums and norms taken through them have float32's whole range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmerge.errors import BadNumber
from taskmerge.numerics.powers import exponent_of, magnitude, norm, times_power, total

NORMAL = st.lists(st.floats(0.5, 2.0, width=32), min_size=1, max_size=30)


@given(NORMAL, st.integers(-120, 120))
def test_scaling_there_and_back_changes_no_digit(values: list[float], exponent: int) -> None:
    there = times_power(torch.tensor(values), exponent)
    assert [math.ldexp(value, exponent) for value in values] == there.tolist()
    assert times_power(there, -exponent).tolist() == values


@given(NORMAL, st.integers(-120, 126))
def test_totals_and_norms_follow_the_scale(values: list[float], exponent: int) -> None:
    s = torch.tensor(sorted(values, reverse=True))
    assert total(s) == float(s.sum())
    assert total(times_power(s, exponent)) == math.ldexp(total(s), exponent)
    assert norm(times_power(s, exponent)) == pytest.approx(math.ldexp(math.hypot(*values), exponent), rel=1e-12)


@given(st.floats(1e-300, 1e300))
def test_an_exponent_brackets_its_number(largest: float) -> None:
    assert 2.0 ** (exponent_of(largest) - 1) <= largest < 2.0 ** exponent_of(largest)


def test_zeros_and_nothing() -> None:
    assert exponent_of(0.0) == 0
    assert total(torch.zeros(3)) == total(torch.empty(0)) == 0
    assert magnitude(torch.empty(0, 3)) == magnitude(torch.zeros(2, 3)) == norm(torch.empty(0, 3)) == 0


def test_magnitude_is_the_largest_entry_of_either_sign_or_an_error() -> None:
    assert magnitude(torch.tensor([[1.0, -3.0], [2.0, 0.5]])) == 3.0
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BadNumber, match="NaN or infinity"):
            magnitude(torch.tensor([[1.0, bad]]))
