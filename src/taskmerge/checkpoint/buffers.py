"""A tensor's bytes, without a copy."""

import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in C order; writing to them writes to the tensor."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
