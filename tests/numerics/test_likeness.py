"""Cosines, medians and groups against plain loops, and the rule at its edges."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics import likeness
from taskmerge.numerics.likeness import ALIKE, LONGEST, UNLIKE

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values * (torch.arange(shape[0]) % 4 != 3)[:, None]  # every fourth row is zero


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 9))
def test_cosines_are_their_definition(seed: int, count: int, size: int) -> None:
    rows = drawn(seed, count, size)
    found = likeness.cosines(rows @ rows.T)
    for s, first in enumerate(rows.tolist()):
        for t, second in enumerate(rows.tolist()):
            length = math.hypot(*first) * math.hypot(*second)
            product = math.fsum(a * b for a, b in zip(first, second, strict=True))
            if any(first) or any(second):
                assert found[s, t] == pytest.approx(product / length if length else 0, abs=1e-9)
            else:
                assert math.isnan(found[s, t])


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_products_of_weights_follow_from_those_of_base_and_task_vectors(seed: int, count: int) -> None:
    rows = drawn(seed, count + 1, 7)
    weights = torch.cat([rows[:1], rows[:1] + rows[1:]])
    torch.testing.assert_close(likeness.of_weights(rows @ rows.T), weights @ weights.T)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 4))
def test_pooled_cosines_are_over_what_both_have(seed: int, count: int) -> None:
    rows, chance = drawn(seed, count, 12), torch.Generator().manual_seed(seed)
    has = torch.rand(count, 12, generator=chance) < 0.6
    inner, squares = torch.zeros(count, count).double(), torch.zeros(count, count).double()
    for s in range(count):
        for t in range(count):
            both = has[s] & has[t]
            inner[s, t], squares[s, t] = rows[s, both] @ rows[t, both], rows[s, both].square().sum()
    found = likeness.pooled_cosines(inner, squares)
    for s in range(count):
        for t in range(count):
            length = math.sqrt(squares[s, t] * squares[t, s])
            assert math.isnan(found[s, t]) if not length else found[s, t] == pytest.approx(float(inner[s, t] / length))


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1, 1)), max_size=9))
def test_medians_leave_out_what_is_not_there(values: list[float]) -> None:
    (found,) = likeness.medians(torch.tensor(values, dtype=torch.float64)[:, None]).tolist()
    known = [value for value in values if not math.isnan(value)]
    assert found == statistics.median_low(known) if known else math.isnan(found)


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_groups_are_the_parts_of_the_graph(links: set[tuple[int, int]]) -> None:
    linked = torch.zeros(7, 7, dtype=torch.bool)
    for s, t in links:
        linked[s, t] = True
    label = list(range(7))
    for _ in range(7):  # the smallest index spreads along the links
        for s, t in links:
            label[s] = label[t] = min(label[s], label[t])
    wanted = [tuple(i for i in range(7) if label[i] == one) for one in sorted(set(label))]
    assert likeness.groups(linked) == wanted
    assert likeness.among(range(7), linked) == [group for group in wanted if len(group) > 1]


@pytest.mark.parametrize(
    ("median", "scale", "shared", "moved", "wanted"),
    [
        (0.999, 1.0, True, True, "fine-tuning"),
        (ALIKE, LONGEST, True, True, "fine-tuning"),
        (ALIKE, 1 / LONGEST, True, True, "fine-tuning"),
        (1.0, 1.001 * LONGEST, True, True, "far"),
        (1.0, 0.01, True, True, "far"),
        (ALIKE - 1e-6, 1.0, True, True, "far"),
        (UNLIKE, 1.0, True, True, "far"),
        (UNLIKE - 1e-6, 1.0, True, True, "unrelated"),
        (-0.9, 1.0, True, True, "unrelated"),
        (1.0, 1.0, True, False, "equal"),
        (None, None, True, False, "equal"),
        (None, None, True, True, "unknown"),
        (None, None, False, False, "unrelated"),
    ],
)
def test_the_rule(median: float | None, scale: float | None, shared: bool, moved: bool, wanted: str) -> None:
    assert likeness.kin(median, scale, shared=shared, moved=moved) == wanted
