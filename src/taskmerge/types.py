"""Tensor aliases with shapes, and the few names that every layer shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor

Stack = Float[Tensor, "task *shape"]
"""The T tensors of one name, one row a task, in canonical (sorted) task order."""

Weights = Float[Tensor, "task"]
"""One weight a task, float64 on the CPU; ones where the user gave none."""

Merged = Float[Tensor, "*shape"]
"""One merged tensor (or merged task vector)."""

Matrix = Float[Tensor, "m n"]

TensorClass = Literal["linear", "stack", "projection", "embedding", "conv", "vector", "scalar", "buffer"]
Space = Literal["weight", "delta", "centred"]

Inputs = Mapping[str, Tensor]
"""A batch for a backbone: `pixels` uint8 [N, 3, H, W], or `input_ids` and `attention_mask` int64 [N, L]."""


Note = Callable[[str], None]
"""Takes a sentence for the person who runs this."""

Progress = Callable[[int, int | None, str], None]
"""Called with samples done, samples in all (None while data is read), and what is going on."""


def unheard(note: str) -> None:
    """The `Note` of those to whom nobody listens."""


def unwatched(done: int, total: int | None, label: str) -> None:
    """The `Progress` of those whom nobody watches."""


class Prepare(Protocol):
    """A backbone's deterministic preprocessing, applied once to raw items."""

    @property
    def key(self) -> str:
        """Tells one preprocessing from another: part of the cache's key."""
        ...

    def __call__(self, raw: Sequence[Any]) -> Inputs:
        """Raw items (PIL pictures, uint8 arrays [H, W, 3], texts, or pairs of texts) as inputs."""
        ...
