"""Merges over rank and coefficient, proper and reversed: one factorisation serves every point (E5)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from taskmerge.merging.plan import TensorJob
from taskmerge.methods.task_arithmetic import usual_coefficient
from taskmerge.numerics.rank import Rank
from taskmerge.types import Space
from taskmerge.workflows.sweeps.encoder import Encoder
from taskmerge.workflows.sweeps.factored import Counts, Factored, Sums, beyond, kept, put, reach

SPACES: Mapping[str, Space] = {"cart": "centred", "truncated_task_arithmetic": "delta"}
"""About what each method's task vectors are taken."""
Form = Callable[..., None]
"""Puts the point's model into the encoder; keywords are those of `factored.put`."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One merge: a method, the rank that it keeps of every matrix (`reversed`: the lowest components), λ."""

    method: str
    rank: Rank
    coefficient: float
    reversed: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """The point as plain values."""
        direction = "reversed" if self.reversed else "proper"
        return {"method": self.method, "direction": direction, "rank": str(self.rank), "coefficient": self.coefficient}

    @property
    def counts(self) -> Counts:
        """How many leading components its sum is made of."""
        return beyond(self.rank) if self.reversed else kept(self.rank)


def methods(encoder: Encoder) -> tuple[str, ...]:
    """The methods that can be swept over rank: CART, and truncated task arithmetic where there is a base."""
    return tuple(SPACES) if encoder.base is not None else ("cart",)


def usual(method: str, tasks: int) -> float:
    """The coefficient that a method has where nobody says."""
    return 1.0 if method == "cart" else usual_coefficient(tasks)


def walk(encoder: Encoder, points: Sequence[GridPoint], scratch: Path) -> Iterator[tuple[GridPoint, Form]]:
    """Every point with what forms it, valid until the next is asked for.

    Points of one method are factored together and walked upwards in rank; those of one rank share its sum. Factors lie
    in `scratch` while their method is swept. Points before one that is formed are passed, so that a sweep that goes on
    gets the same bits as one that was never stopped.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for method, own in groupby(sorted(points, key=lambda point: list(SPACES).index(point.method)), _method):
        mine = list(own)
        factored = Factored(encoder, SPACES[method], scratch).write(reach([point.counts for point in mine]))
        for lowest in (False, True):
            side = sorted((point for point in mine if point.reversed == lowest), key=_order)
            sums = Sums(factored, encoder.tasks)
            for _, equal in groupby(side, _order):
                several = list(equal)
                sums.advance(several[0].counts)
                for point in several:
                    yield point, _form(sums, point)
        for path in scratch.iterdir():
            path.unlink()


def _method(point: GridPoint) -> str:
    return point.method


def _order(point: GridPoint) -> float:
    """Ascending in the number of components of the sum."""
    return -point.rank.value if point.reversed else point.rank.value


def _form(sums: Sums, point: GridPoint) -> Form:
    def form(*, exact: bool = False, also: Callable[[TensorJob, Tensor], None] | None = None) -> None:
        put(sums, point.coefficient, lowest=point.reversed, exact=exact, also=also)

    return form
