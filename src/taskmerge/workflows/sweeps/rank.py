"""Scores over the rank that is kept of every matrix: CART and truncated task arithmetic, proper and reversed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.grid import GridPoint, methods, usual, walk
from taskmerge.workflows.sweeps.opening import Opened
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.running import Measure, Planned, entries


@dataclass(frozen=True)
class RankSweep:
    """Choi et al. (arXiv:2412.12153), their figure of accuracy over rank: reversed keeps the lowest components (E2)."""

    opened: Opened
    kind: str = "rank"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def points(self) -> list[Planned]:
        items = self.opened.judge.items(self.opened.names)
        return [Planned(point.key, items) for point in self._grid()]

    def _grid(self) -> list[GridPoint]:
        encoder = self.opened.encoder
        return [
            GridPoint(method, rank, usual(method, len(encoder.tasks)), reversed=lowest)
            for method in methods(encoder)
            for lowest in (False, True)
            for rank in self.opened.asked.ranks
        ]

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        judge, names = self.opened.judge, self.opened.names
        for point, form in walk(self.opened.encoder, self._grid(), scratch):

            def measure(form: Any = form, label: str = f"{point.method} at rank {point.rank}") -> dict[str, Any]:
                form()
                return {"scores": judge.scores(label, names)}

            yield point.key, measure

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        return {"points": [{**point, **result, **means.of(result["scores"])} for point, result in entries(self, found)]}
