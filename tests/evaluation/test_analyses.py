"""Discrepancy and loss correlation against plain loops over the items."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from taskmerge.evaluation.analyses import correlations, discrepancy


def drawn(seed: int, count: int = 60, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    outputs, expert = torch.randn(2, count, classes, generator=generator)
    expert[torch.arange(count), labels] += 1.0
    return outputs, expert, labels


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_discrepancy_counts_items(seed: int) -> None:
    outputs, expert, labels = drawn(seed)
    lost = gained = 0
    for ours, theirs, label in zip(outputs.tolist(), expert.tolist(), labels.tolist(), strict=True):
        right, expert_right = ours.index(max(ours)) == label, theirs.index(max(theirs)) == label
        lost += expert_right and not right
        gained += right and not expert_right
    found = discrepancy(outputs, expert, labels)
    assert found["n"] == 60
    assert found["lost"]["share"] == lost / 60
    assert found["gained"]["share"] == gained / 60
    assert found["net"]["share"] == pytest.approx((lost - gained) / 60)
    for one in ("lost", "gained", "net"):
        assert found[one]["low"] <= found[one]["share"] <= found[one]["high"]


def ranked(one: list[float], other: list[float]) -> float:
    """Pearson's correlation of the ranks, by hand."""
    a, b = rankdata(one), rankdata(other)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_loss_correlations_are_their_definition() -> None:
    outputs, expert, labels = drawn(3)
    entropy, self_label, truth, wrong = [], [], [], []
    for ours, theirs, label in zip(outputs.double().tolist(), expert.tolist(), labels.tolist(), strict=True):
        log_total = math.log(sum(math.exp(one) for one in ours))
        log_p = [one - log_total for one in ours]
        entropy.append(-sum(math.exp(one) * one for one in log_p))
        chosen = theirs.index(max(theirs))
        self_label.append(-log_p[chosen])
        truth.append(-log_p[label])
        wrong.append(chosen != label)
    found = {(one["loss"], one["items"]): one for one in correlations(outputs, expert, labels)}
    assert set(found) == {(loss, items) for loss in ("entropy", "expert_label") for items in ("all", "expert wrong")}
    for name, loss in (("entropy", entropy), ("expert_label", self_label)):
        assert found[name, "all"]["score"] == pytest.approx(ranked(loss, truth))
        few = [place for place, one in enumerate(wrong) if one]
        assert found[name, "expert wrong"]["n"] == len(few) > 3
        expected = ranked([loss[place] for place in few], [truth[place] for place in few])
        assert found[name, "expert wrong"]["score"] == pytest.approx(expected)
    for one in found.values():
        assert -1 <= one["low"] < one["score"] < one["high"] <= 1


def test_the_experts_label_is_the_true_loss_where_the_expert_is_right() -> None:
    outputs, _, labels = drawn(4)
    oracle = torch.nn.functional.one_hot(labels, 4).float()
    found = {(one["loss"], one["items"]): one for one in correlations(outputs, oracle, labels)}
    assert found["expert_label", "all"]["score"] == pytest.approx(1.0)
    assert found["expert_label", "expert wrong"]["n"] == 0
    assert found["expert_label", "expert wrong"]["score"] is None


def test_a_loss_that_does_not_vary_has_no_correlation() -> None:
    outputs = torch.zeros(10, 4)
    found = correlations(outputs, torch.randn(10, 4), torch.arange(10) % 4)
    assert {one["score"] for one in found} == {None}
