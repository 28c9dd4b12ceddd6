"""Criteria without labels against scikit-learn, SciPy and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from taskmerge.evaluation.criteria import CRITERIA


def pairs(seed: int, n: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, c, generator=generator), 3 * torch.randn(n, c, generator=generator)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(2, 40), c=st.integers(2, 6))
def test_each_criterion_is_its_definition(seed: int, n: int, c: int) -> None:
    ours, theirs = pairs(seed, n, c)
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in ours.double().tolist()]
    q = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in theirs.double().tolist()]
    same = [row.index(max(row)) == other.index(max(other)) for row, other in zip(p, q, strict=True)]
    sure = [max(other) for other in q]
    wanted = {
        "agreement": sum(same) / n,
        "confident": sum(s for s, hit in zip(sure, same, strict=True) if hit) / sum(sure),
        "overlap": sum(min(a, b) for row, other in zip(p, q, strict=True) for a, b in zip(row, other, strict=True)) / n,
        "entropy": float(np.mean([stats.entropy(row) for row in p])),
    }
    for name, value in wanted.items():
        assert CRITERIA[name].of("classification", ours, theirs) == pytest.approx(value, abs=1e-12), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(4, 40), c=st.integers(2, 6))
def test_kappa_is_scikit_learns(seed: int, n: int, c: int) -> None:
    ours, theirs = pairs(seed, n, c)
    a, b = ours.argmax(1).numpy(), theirs.argmax(1).numpy()
    if len({*a, *b}) > 1:
        assert CRITERIA["kappa"].of("classification", ours, theirs) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_kappa_of_constant_predictions_is_zero() -> None:
    ours = torch.tensor([[1.0, 0.0]] * 4)
    assert CRITERIA["kappa"].of("classification", ours, ours) == 0


@pytest.mark.parametrize("name", ["agreement", "kappa", "confident", "overlap"])
def test_a_regression_is_judged_by_its_correlation_with_the_expert(name: str) -> None:
    ours, theirs = (one[:, 0] for one in pairs(0, 30, 2))
    assert CRITERIA[name].of("regression", ours, theirs) == pytest.approx(stats.pearsonr(ours, theirs).statistic)
    assert CRITERIA[name].of("regression", torch.ones(30), theirs) == 0


def test_what_a_criterion_cannot_judge_is_left_out() -> None:
    ours, theirs = pairs(0, 5, 2)
    assert CRITERIA["entropy"].of("regression", ours[:, 0], theirs[:, 0]) is None
    assert all(one.of("depth", ours, theirs) is None for one in CRITERIA.values())


@pytest.mark.parametrize("name", ["agreement", "confident", "overlap"])
def test_the_expert_itself_is_the_best(name: str) -> None:
    ours, theirs = pairs(1, 50, 4)
    best = CRITERIA[name].of("classification", theirs, theirs)
    assert best == pytest.approx(1)
    assert CRITERIA[name].of("classification", ours, theirs) < best
