"""Scores over the coefficient: CART, truncated task arithmetic, and task arithmetic, which is that at full rank."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.grid import GridPoint, methods, walk
from taskmerge.workflows.sweeps.opening import Opened
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.request import RANK
from taskmerge.workflows.sweeps.running import Measure, Planned, entries

FULL = Rank("ratio", 1.0)


@dataclass(frozen=True)
class CoefficientSweep:
    """One sum a method and rank serves all coefficients (E5)."""

    opened: Opened
    kind: str = "coefficient"

    @property
    def options(self) -> dict[str, Any]:
        return {"rank": str(RANK)}

    def points(self) -> list[Planned]:
        items = self.opened.judge.items(self.opened.names)
        return [Planned(_named(point), items) for point in self._grid()]

    def _grid(self) -> list[GridPoint]:
        swept = [(method, RANK) for method in methods(self.opened.encoder)]
        if self.opened.encoder.base is not None:
            swept.append(("truncated_task_arithmetic", FULL))
        return [
            GridPoint(method, rank, coefficient)
            for method, rank in swept
            for coefficient in self.opened.asked.coefficients
        ]

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        judge, names = self.opened.judge, self.opened.names
        for point, form in walk(self.opened.encoder, self._grid(), scratch):

            def measure(form: Any = form, label: str = f"{point.method} at {point.coefficient:g}") -> dict[str, Any]:
                form()
                return {"scores": judge.scores(label, names)}

            yield _named(point), measure

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        return {"points": [{**point, **result, **means.of(result["scores"])} for point, result in entries(self, found)]}


def _named(point: GridPoint) -> dict[str, Any]:
    """The point, by the plain name of task arithmetic at full rank."""
    return {**point.key, "method": "task_arithmetic" if point.rank == FULL else point.method}
