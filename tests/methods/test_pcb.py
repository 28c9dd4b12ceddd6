"""PCB against its definition, streamed and in one tensor, and where its stretching divides zero by zero."""

import math

import pytest
import torch
from elementwise_cases import PROPERTY, assert_is, ones, scan_of, stacks, vectors, weights_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.pcb import measure, pcb, scores


def at_share(ordered: list[float], share: float, below: int = 0) -> float:
    return ordered[min(max(0, math.floor(len(ordered) * share - below + 1e-9)), len(ordered) - 1)]


def stretched(values: list[float], low: float, high: float) -> list[float]:
    return [(min(max(value, low), high) - low) / (high - low) if high > low else 0.0 for value in values]


def pcb_by_hand(rows: list[list[float]], weights: list[float], ratio: float, coefficient: float) -> list[float]:
    """Du et al. with the order statistics of the authors' code, which sorts the whole model."""
    tasks, totals = len(rows), [sum(column) for column in zip(*rows, strict=True)]
    clipped, shares = [], []
    for row in rows:
        ordered = sorted(abs(value) for value in row)
        low, high = at_share(ordered, 1e-4), at_share(ordered, 1 - 1e-4, below=1)
        clipped.append([math.copysign(min(max(abs(x), low), high), x) if x else 0.0 for x in row])
        intra = [math.exp(tasks * x * x) for x in stretched([abs(x) for x in row], low, high)]
        scores = [a * math.tanh(x * total) for a, x, total in zip(intra, row, totals, strict=True)]
        low, high = at_share(sorted(scores), 1 - ratio), max(scores)
        equal = [float(score >= high and high > 0) for score in scores]
        shares.append(stretched(scores, low, high) if high > low else equal)
    merged = []
    for at in range(len(totals)):
        above = sum(w * c[at] * s[at] for w, c, s in zip(weights, clipped, shares, strict=True))
        merged.append(coefficient * above / max(1e-12, sum(s[at] for s in shares)))
    return merged


@PROPERTY
@given(stacks(), st.sampled_from([0.05, 0.1, 0.5, 1.0]), st.data())
def test_pcb_is_its_definition(stack: Tensor, ratio: float, data: st.DataObject) -> None:
    stack = stack.double()  # in float32 two scores that are equal on paper may part by a rounding
    weights = data.draw(weights_for(len(stack)))
    expected = pcb_by_hand(vectors(stack), weights.tolist(), ratio, 1.2)
    found = pcb(stack, weights, ratio=ratio)
    assert torch.isfinite(found).all()
    assert float((found.flatten() - torch.tensor(expected, dtype=torch.float64)).abs().max()) < 1e-9


def test_whole_model_is_the_definition_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [1e-2 * torch.randn(3, size, generator=generator) for size in (7000, 1, 4999)]
    statistic = measure(scan_of(*tensors, cuts=512), ratio=0.1)
    expected = pcb_by_hand(vectors(torch.cat(tensors, dim=1)), [1.0] * 3, 0.1, 1.2)
    start = 0
    for tensor in tensors:
        size = tensor.shape[1]
        assert_is(pcb(tensor, ones(tensor), statistic), expected[start : start + size], tensor, tolerance=1e-5)
        start += size


def test_bounds_are_the_order_statistics_of_the_authors_code() -> None:
    stack = torch.randperm(20_000, generator=torch.Generator().manual_seed(0)).float()[None] + 1
    ((low, high),) = measure(scan_of(stack, cuts=4096), ratio=0.1).magnitudes
    assert (low, high) == (3, 19_998)  # sorted upwards, places 20,000 · 0.0001 and 20,000 · 0.9999 - 1


@pytest.mark.parametrize(("ratio", "count"), [(0.34, 50), (0.55, 100), (0.56, 25), (0.1, 30)])
def test_ratios_count_as_the_decimals_were_meant(ratio: float, count: int) -> None:
    stack = torch.arange(1.0, count + 1)[None] / count
    statistic = measure(scan_of(stack), ratio=ratio)
    (found,) = scores(stack, statistic.magnitudes)
    assert int((found >= statistic.scores[0][0]).sum()) == round(ratio * count)


@pytest.mark.parametrize("rows", [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[2.0], [3.0]], [[1.0, -1.0]]])
def test_constant_rows_give_numbers(rows: list[list[float]]) -> None:
    """All magnitudes or all scores equal: stretching to [0, 1] would divide zero by zero."""
    stack = torch.tensor(rows)
    found = pcb(stack, ones(stack), coefficient=1.0)
    assert found.tolist() == pytest.approx([sum(column) / len(rows) for column in zip(*rows, strict=True)])


def test_a_task_that_never_moved_takes_no_part() -> None:
    moved = torch.tensor([[1.0, 2.0, 4.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    bounds = measure(scan_of(moved), ratio=0.5)
    assert bounds.scores[1] == (0.0, 0.0)
    assert (pcb(moved, ones(moved), ratio=0.5).sign() * moved[0].sign() >= 0).all()


def test_many_tasks_do_not_overflow() -> None:
    stack = torch.randn(100, 30, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(pcb(stack, ones(stack))).all()
