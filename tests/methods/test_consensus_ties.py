"""Consensus TIES: the TIES sum under the masks of consensus task arithmetic."""

import torch
from elementwise_cases import PROPERTY, assert_is, ones, scan_of, stacks, vectors, weights_for
from hypothesis import given
from hypothesis import strategies as st
from test_consensus_ta import masked_by_hand
from test_ties import ties_by_hand
from torch import Tensor

from taskmerge.methods.consensus_ties import consensus_ties, model_trim


@PROPERTY
@given(stacks(rich=False), st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 3), st.data())
def test_consensus_ties_is_its_definition(stack: Tensor, density: float, agreement: int, data: st.DataObject) -> None:
    weights = data.draw(weights_for(len(stack)))
    plain = vectors(stack)
    total = ties_by_hand(plain, weights.tolist(), density, "sum", 1.0)
    rows = [[w * value for value in row] for w, row in zip(weights.tolist(), plain, strict=True)]
    expected = [0.5 * value for value in masked_by_hand(rows, total, 0.5, agreement)]
    options = {"density": density, "strictness": 0.5, "agreement": agreement, "coefficient": 0.5}
    trim = model_trim(scan_of(stack), density=density, weights=weights)
    assert_is(consensus_ties(stack, weights, trim, **options), expected, stack, tolerance=0)
    assert_is(consensus_ties(stack, weights, **options), expected, stack, tolerance=0)


def test_weights_decide_the_majority_sign_too() -> None:
    stack, weights = torch.tensor([[1.0, 1.0], [-2.0, -1.0]]), torch.tensor([2.0, 1.0], dtype=torch.float64)
    trim = model_trim(scan_of(stack), density=1.0, weights=weights)  # the sums are 0 and 1; unweighted -1 and 0
    for known in (trim, None):
        found = consensus_ties(stack, weights, known, density=1.0, agreement=1, coefficient=1.0)
        assert found.tolist() == [2.0, 2.0]


def test_whole_model_thresholds_reach_every_tensor() -> None:
    small, large = torch.full((2, 3), 0.1), torch.full((2, 3), 5.0)
    trim = model_trim(scan_of(small, large), density=0.5)
    assert consensus_ties(small, ones(small), trim).tolist() == [0.0, 0.0, 0.0]
    assert consensus_ties(large, ones(large), trim, coefficient=1.0).tolist() == [10.0, 10.0, 10.0]
