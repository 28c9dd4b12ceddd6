"""Consensus TIES: the TIES sum, on the entries that several tasks need."""

from typing import Annotated

import torch

from taskmerge.methods.consensus_ta import consensus
from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.methods.ties import Trim, elected_sum, measure
from taskmerge.numerics.selection import Scan, slices
from taskmerge.types import Merged, Stack, Weights


def model_trim(scan: Scan, *, density: float, weights: Weights | None = None) -> Trim:
    """The whole model's thresholds and majority sign, as for TIES."""
    return measure(scan, density, weights=weights)


@method(
    space="delta",
    reads="elements",
    title="Consensus TIES (TALL masks)",
    formula="θ = θ₀ + λ 1[Σ_t m_t ≥ k] ∘ τ_MTL, m_t = |w_t τ_t| > c |τ_MTL - w_t τ_t|, τ_MTL = TIES sum of w_t τ_t",
    paper="arXiv:2405.07813",
    statistic=model_trim,
    notes=(
        "TIES here trims over the whole model and sums; the masks compare with the untrimmed task vectors",
        "with fewer experts than `agreement` no entry is kept: the result is the base",
        "the authors choose strictness per task and the coefficient on validation data",
    ),
    laws=Laws(zero_task={}),
    work=Work(sweeps=45, passes=2),
)
def consensus_ties(
    stack: Stack,
    weights: Weights,
    statistic: Trim | None = None,
    *,
    density: Annotated[float, Option("share of entries that TIES keeps, over the whole model", low=1e-6, high=1)] = 0.2,
    strictness: Annotated[float, Option("c: how far a task must stand out from the others", low=0)] = 0.4,
    agreement: Annotated[int, Option("k: tasks that must want an entry", low=1)] = 2,
    coefficient: Annotated[float, Option("scales the masked sum")] = 0.3,
) -> Merged:
    """The TIES sum on the entries that at least k tasks want.

    Scope, ties and zero sums as `ties` with scope `model` and aggregate `sum`; the masks of `consensus_ta`
    (Wang et al.). Weights multiply the task vectors first.
    """
    if not stack[0].numel():
        return torch.zeros_like(stack[0])
    total = elected_sum(stack, weights, statistic or measure(slices(stack), density, weights=weights))
    return consensus(stack, weights, total, strictness, agreement).mul_(coefficient)
