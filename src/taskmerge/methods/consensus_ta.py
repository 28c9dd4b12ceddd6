"""Consensus task arithmetic: keep only the entries that several tasks need."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.types import Merged, Stack, Weights


def consensus(stack: Stack, weights: Weights, multi_task: Merged, strictness: float, agreement: int) -> Merged:
    """A multi-task vector where at least `agreement` tasks' masks want it, 0 elsewhere.

    mask_t = |w_t τ_t| > c |τ_MTL - w_t τ_t| (Wang et al.): strict, so an entry that never moved is in no mask.
    """
    wanted = torch.zeros_like(multi_task)
    for row, weight in zip(stack, weights.tolist(), strict=True):
        own = row * weight
        others = (multi_task - own).abs_().mul_(strictness)
        wanted.add_(own.abs_().gt_(others))
    return wanted.ge_(agreement).mul_(multi_task)


@method(
    space="delta",
    reads="elements",
    title="Consensus task arithmetic (TALL masks)",
    formula="θ = θ₀ + λ 1[Σ_t m_t ≥ k] ∘ τ_MTL, m_t = |w_t τ_t| > c |τ_MTL - w_t τ_t|, τ_MTL = Σ_t w_t τ_t",
    paper="arXiv:2405.07813",
    notes=(
        "with fewer experts than `agreement` no entry is kept: the result is the base",
        "the authors choose strictness per task and the coefficient on validation data",
    ),
    laws=Laws(zero_task={}),
    work=Work(sweeps=8),
)
def consensus_ta(
    stack: Stack,
    weights: Weights,
    *,
    strictness: Annotated[float, Option("c: how far a task must stand out from the others", low=0)] = 0.4,
    agreement: Annotated[int, Option("k: tasks that must want an entry", low=1)] = 2,
    coefficient: Annotated[float, Option("scales the masked sum")] = 0.3,
) -> Merged:
    """The sum of task vectors on the entries that at least k tasks want.

    λ 1[Σ_t m_t ≥ k] ∘ Σ_t w_t τ_t (Wang et al.); weighted task vectors w_t τ_t throughout.
    """
    total = torch.zeros_like(stack[0])
    for row, weight in zip(stack, weights.tolist(), strict=True):
        total.add_(row, alpha=weight)
    return consensus(stack, weights, total, strictness, agreement).mul_(coefficient)
