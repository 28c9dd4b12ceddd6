"""MagMax: every entry from the task that moved it furthest."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.types import Merged, Stack


@method(
    space="delta",
    reads="elements",
    title="MagMax",
    formula="θ = θ₀ + λ τ_{t*}, t* = argmax_t |τ_t| entry by entry",
    paper="arXiv:2407.06322",
    notes=(
        "equal magnitudes go to the first task in sorted order; the authors' code lets the later one win",
        "the authors searched the coefficient on validation data; 0.5 is their value for independent experts",
    ),
    laws=Laws(equal_experts={"coefficient": 1.0}, zero_task={}),
    work=Work(sweeps=18),
)
def magmax(stack: Stack, *, coefficient: Annotated[float, Option("scales the result")] = 0.5) -> Merged:
    """Per entry the task vector of largest magnitude.

    λ τ_{t*} (Marczak et al.); ties of magnitude go to the canonically first task.
    """
    furthest = stack[0].clone()
    for row in stack[1:]:
        torch.where(row.abs() > furthest.abs(), row, furthest, out=furthest)
    return furthest.mul_(coefficient)
