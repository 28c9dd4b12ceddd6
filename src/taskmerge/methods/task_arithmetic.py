"""Task arithmetic: add scaled task vectors to the base."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.types import Merged, Stack, Weights

MANY_TASKS = 14


def usual_coefficient(tasks: int) -> float:
    """0.3, and 0.1 from 14 tasks on: the values of the papers' tables."""
    return 0.1 if tasks >= MANY_TASKS else 0.3


@method(
    space="delta",
    reads="elements",
    title="Task arithmetic",
    formula="θ = θ₀ + λ Σ_t w_t τ_t",
    paper="arXiv:2212.04089",
    notes=("a negative coefficient or weight removes a task (negation)",),
    laws=Laws(equal_experts={"coefficient": 1 / 3}, zero_task={"coefficient": 0.3}),  # of three experts
    work=Work(sweeps=2),
)
def task_arithmetic(
    stack: Stack,
    weights: Weights,
    *,
    coefficient: Annotated[
        float | None,
        Option(
            "scales the sum of task vectors",
            auto="0.3; 0.1 from 14 tasks on",
            usual=lambda options, tasks: usual_coefficient(tasks),
        ),
    ] = None,
) -> Merged:
    """The base plus the scaled sum of the task vectors.

    λ Σ w_t τ_t (Ilharco et al., eq. 1); λ < 0 forgets. Returns the merged task vector.
    """
    scale = usual_coefficient(len(stack)) if coefficient is None else coefficient
    total = torch.zeros_like(stack[0])
    for row, weight in zip(stack, weights.tolist(), strict=True):
        total.add_(row, alpha=scale * weight)
    return total
