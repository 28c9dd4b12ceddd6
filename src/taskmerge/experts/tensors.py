"""What a tensor is: how matrices lie in it."""

import math

from taskmerge.types import TensorClass


def matrix_shape(kind: TensorClass, shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as a matrix: [out, in·kh·kw] for kernels, [rows, features] for tables."""
    numel = math.prod(shape)
    if kind == "conv":
        return shape[0], numel // max(1, shape[0])
    return numel // max(1, shape[-1]), shape[-1]
