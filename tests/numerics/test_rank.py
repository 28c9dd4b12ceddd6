"""What a rank means: a share of the full rank, a number of components, or a share of the energy."""

import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import UsageError
from taskmerge.numerics.rank import Rank

PROPERTY = settings(max_examples=200, deadline=None)


@PROPERTY
@given(st.integers(1, 100), st.integers(1, 5000))
def test_a_share_is_floored_as_the_decimal_was_meant_and_never_nothing(hundredths: int, full: int) -> None:
    """int(0.29 * 100) is 28 in binary, and int(0.08 * 7) keeps nothing at all."""
    said = str(Decimal(hundredths) / 100)
    if "." not in said:
        said += ".0"
    assert Rank.parse(said).resolve(full) == max(1, math.floor(Decimal(said) * full))


@pytest.mark.parametrize(
    ("said", "full", "kept"),
    [("0.29", 100, 29), ("0.58", 100, 58), ("0.08", 7, 1), ("0.08", 768, 61), ("1.0", 12, 12), ("1e-6", 4096, 1)],
)
def test_known_shares(said: str, full: int, kept: int) -> None:
    assert Rank.parse(said).resolve(full) == kept


@PROPERTY
@given(st.integers(1, 300), st.integers(1, 300))
def test_a_count_is_itself_up_to_the_full_rank(count: int, full: int) -> None:
    assert Rank.parse(str(count)).resolve(full) == Rank.parse(count).resolve(full) == min(count, full)


def test_one_is_rank_one_and_one_point_nought_is_full_rank() -> None:
    assert (Rank.parse("1").resolve(64), Rank.parse("1.0").resolve(64)) == (1, 64)
    assert (Rank.parse(1).resolve(64), Rank.parse(1.0).resolve(64)) == (1, 64)
    assert (Rank.parse("1").understood, Rank.parse("1.0").understood) == ("rank 1", "full rank")


@pytest.mark.parametrize("said", ["0", "-3", "0.0", "-0.1", "1.5", "2.0", "nan", "inf", "energy:0", "energy:1.1"])
def test_ranks_out_of_range(said: str) -> None:
    with pytest.raises(UsageError, match="rank"):
        Rank.parse(said)


@pytest.mark.parametrize("said", ["", "many", "0,1", "energy:", "energy:much", "8%", "0x10"])
def test_what_is_no_rank(said: str) -> None:
    with pytest.raises(UsageError, match="no rank"):
        Rank.parse(said)


@PROPERTY
@given(st.integers(1, 999) | st.floats(1e-6, 1.0) | st.floats(1e-6, 1.0).map(lambda share: f"energy:{share}"))
def test_its_text_is_read_back(said: int | float | str) -> None:
    rank = Rank.parse(said)
    assert Rank.parse(str(rank)) == rank
    assert Rank.parse(rank) is rank


def test_an_energy_has_no_rank_without_singular_values() -> None:
    with pytest.raises(ValueError, match="singular values"):
        Rank.parse("energy:0.9").resolve(10)
