"""Powers of two: numbers brought near 1, where no sum or square of theirs leaves the range, without losing a digit."""

import math

import torch
from torch import Tensor

from taskmerge.errors import BadNumber


def magnitude(matrix: Tensor) -> float:
    """The largest absolute entry; NaN or infinity is `BadNumber`."""
    largest = float(torch.stack(torch.aminmax(matrix)).abs().max()) if matrix.numel() else 0.0
    if not math.isfinite(largest):
        raise BadNumber("a matrix to factor holds NaN or infinity")
    return largest


def exponent_of(largest: float) -> int:
    """The e with 2^(e-1) <= largest < 2^e; 0 for zero."""
    return math.frexp(largest)[1]


def times_power(tensor: Tensor, exponent: int) -> Tensor:
    """2^exponent times a tensor, in two steps: the factor alone may be beyond the precision's range."""
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)


def norm(matrix: Tensor) -> float:
    """‖A‖_F as a Python float, squared and added up in float64: float32 squares end at 1.8e19."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def total(s: Tensor) -> float:
    """Σ of singular values [k], descending, as a Python float, added up in their precision but near 1.

    Large ones add up to more than float32 holds.
    """
    exponent = exponent_of(float(s[0])) if len(s) else 0
    return math.ldexp(float(times_power(s, -exponent).sum()), exponent)
