"""What other points are compared with: each expert on its own task, the average and the base on all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from taskmerge.errors import BadNumber
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.opening import Opened
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.running import Measure, Planned, entries

EXPERT, AVERAGE, BASE = "expert", "average", "base"


@dataclass(frozen=True)
class References:
    """The experts, their average, and the base where there is one."""

    opened: Opened
    kind: str = "references"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def points(self) -> list[Planned]:
        judge, names = self.opened.judge, self.opened.names
        shared = [AVERAGE, *([BASE] if self.opened.encoder.base is not None else [])]
        experts = [Planned({"model": EXPERT, "task": name}, judge.items([name])) for name in names]
        return [*experts, *(Planned({"model": model}, judge.items(names)) for model in shared)]

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        for planned in self.points():
            yield planned.point, partial(self._scored, planned.point)

    def _scored(self, point: Point) -> dict[str, Any]:
        encoder, names = self.opened.encoder, self.opened.names
        if point["model"] == EXPERT:
            encoder.average([point["task"]])
            return self._known(f"the expert of {point['task']}", [point["task"]])
        if point["model"] == AVERAGE:
            encoder.average()
        else:
            encoder.original()
        return self._known(point["model"], names)

    def _known(self, label: str, names: Sequence[str]) -> dict[str, Any]:
        """Scores of a model that all others are compared with: BadNumber where it has none."""
        scores = self.opened.judge.scores(label, names)
        for entry in scores:
            if entry["score"] is None:
                hint = "`taskmerge inspect` experts and base: one of them is damaged"
                where = f"{label} on task `{entry['task']}`"
                raise BadNumber("outputs hold NaN or infinity", where=where, hint=hint)
        return {"scores": scores}

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        """{experts, average, base}: scores by task, and their means."""
        every = {AVERAGE: "average", BASE: "base"}
        scores: dict[str, list[dict[str, Any]]] = {"experts": []}
        for point, result in entries(self, found):
            scores.setdefault(every.get(point["model"], "experts"), []).extend(result["scores"])
        return {name: {"scores": own, **means.of(own)} for name, own in scores.items()}

    def experts(self, found: Points) -> dict[str, float]:
        """The experts' own scores by task."""
        own = [result["scores"][0] for point, result in entries(self, found) if point["model"] == EXPERT]
        return {entry["task"]: entry["score"] for entry in own}
