"""Intervals: Wilson's against SciPy's, Newcombe's against published figures, and how often each covers the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from taskmerge.evaluation import intervals
from taskmerge.evaluation.intervals import bootstrap, group_sums, grouping, mean_interval, newcombe, paired, wilson


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    k, n = case
    wanted = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_of_the_ends() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert 0 < wilson(1, 1)[0] < 1 / 2  # one success in one trial says little


@pytest.mark.parametrize(
    ("table", "value", "low", "high"),
    [
        # complete response before and after therapy: Fagerland, Lydersen and Laake, Statistical Analysis of
        # Contingency Tables, chapter 8 (the two columns of the book's table are ours exchanged)
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046),
        ((59, 16, 6, 80), 0.0621, 0.0046, 0.1186),
    ],
)
def test_newcombe_gives_the_published_interval(
    table: tuple[int, int, int, int], value: float, low: float, high: float
) -> None:
    assert newcombe(*table) == pytest.approx((value, low, high), abs=5e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_paired_interval_holds_its_value_and_turns_round(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs, dtype=bool).T
    value, low, high = paired(first, second)
    assert value == pytest.approx(first.mean() - second.mean())
    assert -1 <= low <= value + 1e-12 <= high + 2e-12 <= 1 + 2e-12
    back = paired(second, first)
    assert back == pytest.approx((-value, -high, -low), abs=1e-12)


def test_a_paired_interval_is_narrower_than_that_of_two_samples_where_items_agree() -> None:
    first = np.arange(1000) % 4 != 0
    second = first.copy()
    second[:20] = ~second[:20]
    _, low, high = paired(first, second)
    one, other = wilson(int(first.sum()), 1000), wilson(int(second.sum()), 1000)
    assert high - low < 0.6 * np.hypot(one[1] - one[0], other[1] - other[0])


def test_no_items_say_nothing_and_unequal_items_are_refused() -> None:
    none = np.zeros(0, dtype=bool)
    assert paired(none, none) == (0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="no pairs"):
        paired(np.zeros(2, dtype=bool), np.zeros(3, dtype=bool))


def test_a_mean_of_equal_estimates_has_an_interval_smaller_by_the_root_of_their_number() -> None:
    low, high = mean_interval(np.full(4, 0.5), np.full(4, 0.4), np.full(4, 0.7))
    assert (low, high) == pytest.approx((0.45, 0.6))


@pytest.mark.parametrize("groups", [1, 3, 40, 400])
def test_resamples_are_draws_of_n_items_in_both_ways_of_drawing(groups: int) -> None:
    """The mean of counts is that of the items, and their spread is the multinomial's."""
    counts = np.full(groups, 400 // groups)
    counts[0] += 400 - counts.sum()
    drawn = np.concatenate(list(intervals._resamples(counts, 3)))
    assert drawn.shape == (intervals.RESAMPLES, groups)
    assert (drawn.sum(1) == 400).all()
    share = counts / 400
    error = np.sqrt(400 * share * (1 - share) / intervals.RESAMPLES)
    assert (np.abs(drawn.mean(0) - counts) <= 5 * error + 1e-9).all()
    assert drawn.var(0) == pytest.approx(400 * share * (1 - share), rel=0.3, abs=1e-9)


def test_the_seed_alone_decides() -> None:
    counts = np.ones(50, dtype=np.int64)
    values = np.linspace(0, 1, 50)

    def estimate(weights: np.ndarray) -> np.ndarray:
        return weights @ values / 50

    assert bootstrap(estimate, counts, 1) == bootstrap(estimate, counts, 1) != bootstrap(estimate, counts, 2)


def test_zero_has_no_sign() -> None:
    low, high = bootstrap(lambda weights: np.full(len(weights), -0.0), np.ones(9, dtype=np.int64), 0)
    assert (str(low), str(high)) == ("0.0", "0.0")


def test_group_sums_are_sums_by_key() -> None:
    keys = np.array([4, 1, 4, 9, 1])
    values = np.arange(10).reshape(2, 5)
    wanted = [[row[keys == key].sum() for key in (1, 4, 9)] for row in values]
    assert group_sums(values, *grouping(keys)).tolist() == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("n", "share"), [(30, 0.9), (100, 0.5), (500, 0.97)])
def test_wilson_covers(n: int, share: float) -> None:
    drawn = np.random.default_rng(0).binomial(n, share, 20000)
    held = np.mean([low <= share <= high for low, high in (wilson(int(k), n) for k in drawn)])
    assert 0.93 <= held <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "cells"),
    [
        (50, (0.7, 0.1, 0.05, 0.15)),
        (200, (0.8, 0.05, 0.02, 0.13)),
        (500, (0.3, 0.2, 0.2, 0.3)),
        (500, (0.9, 0.01, 0.01, 0.08)),
        (100, (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_newcombe_covers(n: int, cells: tuple[float, ...]) -> None:
    """Of 20,000 samples about 95% of the intervals hold the true difference; never fewer than 94%."""
    drawn = np.random.default_rng(0).multinomial(n, cells, 20000)
    truth = cells[1] - cells[2]
    found = [newcombe(*map(int, one)) for one in drawn]
    held = np.mean([low <= truth <= high for _, low, high in found])
    assert 0.94 <= held <= 0.98
