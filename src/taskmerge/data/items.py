"""The items of one split, decoded and preprocessed once: what encoders are run over."""

from dataclasses import dataclass

from torch import Tensor

from taskmerge.types import Inputs


@dataclass(frozen=True)
class Items:
    """The N items of a split. `labels` is None for an unlabelled one: int64 [N] (classes), float32 [N] (regression),
    or maps [N, H, W] (classes, depth) and [N, 3, H, W] (normals).

    `fingerprint` is the SHA-256 of the decoded content, `skipped` how many undecodable items were left out,
    `indices` [N] their places in the source (sub-sampled with `--limit`).
    """

    inputs: Inputs
    labels: Tensor | None
    fingerprint: str
    indices: Tensor
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.indices)
