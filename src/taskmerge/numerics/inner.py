"""Inner products of task vectors, accurate and in a fixed order."""

import torch
from torch import Tensor

from taskmerge.types import Stack

SLICE = 1 << 16


def gram(stack: Stack) -> Tensor:
    """⟨x_s, x_t⟩ of all pairs of rows: float64 [task, task] on the CPU.

    Summed slice by slice in float64, so no copy of the stack is made and float32 entries lose nothing.
    """
    total = torch.zeros(len(stack), len(stack), dtype=torch.float64, device=stack.device)
    flat = stack.reshape(len(stack), stack[0].numel())
    for start in range(0, flat.shape[1], SLICE):
        wide = flat[:, start : start + SLICE].double()
        total += wide @ wide.T
    return total.cpu()
