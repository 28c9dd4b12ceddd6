"""What one pass over a merged checkpoint and its candidates sums up, over some of their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from taskmerge.types import Matrix


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the entries of some tensors.

    `gram` [T + 2, T + 2] has the inner products of the origin (the base, or the experts' mean), of the T experts'
    differences from it, and of the merged checkpoint's difference. `rounding` is the square of what rounding to the
    type that the merged checkpoint is stored in does to it (a unit in the last place u counts u²/12); `narrow` the same
    of narrower types that hold all its numbers too. `moved` counts the entries that some
    expert clearly changes, and those of them that are as in the origin.
    """

    gram: Matrix
    numel: int
    rounding: float
    narrow: Mapping[str, float]
    moved: tuple[int, int]

    @classmethod
    def none(cls, experts: int) -> "Moments":
        """The sums over nothing."""
        return cls(torch.zeros(experts + 2, experts + 2, dtype=torch.float64), 0, 0.0, {}, (0, 0))

    def __add__(self, other: "Moments") -> "Moments":
        if not self.numel or not other.numel:
            return other if other.numel else self
        both = [code for code in self.narrow if code in other.narrow]
        return Moments(
            self.gram + other.gram, self.numel + other.numel, self.rounding + other.rounding,
            {code: self.narrow[code] + other.narrow[code] for code in both},
            (self.moved[0] + other.moved[0], self.moved[1] + other.moved[1]),
        )  # fmt: skip

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return len(self.gram) - 2

    @property
    def between(self) -> Matrix:
        """Inner products of the experts' differences, [T, T]."""
        return self.gram[1:-1, 1:-1]

    @property
    def change(self) -> float:
        """The square of the merged checkpoint's difference."""
        return float(self.gram[-1, -1])
