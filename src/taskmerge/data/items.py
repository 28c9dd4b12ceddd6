"""The items of one split, decoded and preprocessed once: what encoders are run over. Labels are a value apart."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from taskmerge.types import Inputs


@dataclass(frozen=True)
class Items:
    """The N items of a split, without labels.

    `fingerprint` is the SHA-256 of the decoded content, `skipped` how many undecodable items were left out,
    `indices` [N] their places in the source (sub-sampled with `--limit`).
    """

    inputs: Inputs
    fingerprint: str
    indices: Tensor
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Labelled:
    """Items and their labels: int64 [N] (classes), float32 [N] (regression), or maps [N, H, W] (classes, depth) and
    [N, 3, H, W] (normals)."""

    items: Items
    labels: Tensor

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the decoded content and the labels."""
        kind = f"{self.items.fingerprint}\0{self.labels.dtype}\0{tuple(self.labels.shape)}\0".encode()
        return hashlib.sha256(kind + self.labels.contiguous().numpy().tobytes()).hexdigest()
