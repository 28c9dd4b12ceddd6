"""Tensor aliases with shapes, and the few names that every layer shares."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Stack = Float[Tensor, "task *shape"]
"""The T tensors of one name, one row a task, in canonical (sorted) task order."""

Weights = Float[Tensor, "task"]
"""One weight a task, float64 on the CPU; ones where the user gave none."""

Merged = Float[Tensor, "*shape"]
"""One merged tensor (or merged task vector)."""

Matrix = Float[Tensor, "m n"]

TensorClass = Literal["linear", "projection", "embedding", "conv", "vector", "scalar", "buffer"]
Space = Literal["weight", "delta", "centred"]
