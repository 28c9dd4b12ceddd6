"""How a rank is said: a share of the full rank, a count, or a share of the energy."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from taskmerge.errors import UsageError

GUARD = 1e-9  # 0.29 * 100 is 28.999... in binary: floor with a guard, as the decimal was meant


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank as the user wrote it.

    `ratio` g: k = max(1, floor(g * r)) with r = min(m, n); `count` k: min(k, r); `energy` q: the least k
    whose k largest squared singular values hold at least the share q of their sum.
    """

    kind: Literal["ratio", "count", "energy"]
    value: float

    def __post_init__(self) -> None:
        if self.kind == "count" and (self.value < 1 or self.value != int(self.value)):
            raise UsageError(f"rank {self.value:g} is no positive integer", where="--rank", hint=_HINT)
        if self.kind != "count" and not 0 < self.value <= 1:
            raise UsageError(f"rank {self} is outside (0, 1]", where="--rank", hint=_HINT)

    @classmethod
    def parse(cls, said: "str | int | float | Rank") -> "Rank":
        """Reads `0.08` (ratio), `8` (count; `1` is rank one, `1.0` full rank) or `energy:0.95`."""
        if isinstance(said, Rank):
            return said
        text = str(said).strip()
        try:
            if text.startswith("energy:"):
                return cls("energy", float(text.removeprefix("energy:")))
            if re.fullmatch(r"[+-]?\d+", text):
                return cls("count", int(text))
            return cls("ratio", float(text))
        except ValueError:
            raise UsageError(f"`{text}` is no rank", where="--rank", hint=_HINT) from None

    def resolve(self, full: int) -> int:
        """The number of components for a matrix of full rank `full`; for `energy` use `energy_rank`."""
        if self.kind == "count":
            return min(int(self.value), full)
        if self.kind == "ratio":
            return min(full, max(1, math.floor(self.value * full + GUARD)))
        raise ValueError("an energy rank needs singular values")

    @property
    def understood(self) -> str:
        """The rank in words, for plans and outputs."""
        if self.kind == "count":
            return f"rank {int(self.value)}"
        if self.kind == "energy":
            return f"least rank with {self.value:g} of the energy"
        return "full rank" if self.value == 1 else f"{self.value:g} of the full rank"

    def __str__(self) -> str:
        if self.kind == "count":
            return str(int(self.value))
        if self.kind == "energy":
            return f"energy:{self.value!r}"
        return repr(float(self.value))


_HINT = "a share such as 0.08, an integer such as 8, or energy:0.95"
