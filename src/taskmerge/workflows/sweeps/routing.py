"""Direct routing: each task served by the average (or the base) and its own truncated task vector, over rank."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.merging.plan import TensorJob
from taskmerge.numerics.rank import Rank
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.factored import Factored, Sums, kept, reach
from taskmerge.workflows.sweeps.grid import SPACES, methods
from taskmerge.workflows.sweeps.opening import Opened
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.running import Measure, Planned

ORIGINS = {"cart": "average", "truncated_task_arithmetic": "base"}


@dataclass(frozen=True)
class RoutingSweep:
    """R_k(t) = φ + SVD_k(θ_t - φ), φ the average or the base: one model a task, whose other tensors are the expert's
    own. At full rank it is the expert."""

    opened: Opened
    kind: str = "routing"

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def points(self) -> list[Planned]:
        judge = self.opened.judge
        return [
            Planned(_point(method, name, rank), judge.items([name]))
            for method in methods(self.opened.encoder)
            for name in self.opened.names
            for rank in self.opened.asked.ranks
        ]

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        encoder, judge, ranks = self.opened.encoder, self.opened.judge, self.opened.asked.ranks
        for method in methods(encoder):
            factored = Factored(encoder, SPACES[method], scratch).write(reach([kept(rank) for rank in ranks]))
            for name in self.opened.names:
                sums = Sums(factored, [name])
                for rank in ranks:
                    sums.advance(kept(rank))

                    def measure(sums: Sums = sums, name: str = name) -> dict[str, Any]:
                        _serve(sums, name)
                        return {"scores": judge.scores(f"routing to {name}", [name])}

                    yield _point(method, name, rank), measure
            for path in scratch.iterdir():
                path.unlink()

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        """A point is what all tasks have at one rank, each served by its own model."""
        points = []
        for method in methods(self.opened.encoder):
            for rank in self.opened.asked.ranks:
                own = [found[_point(method, name, rank)]["scores"][0] for name in self.opened.names]
                points.append({"origin": ORIGINS[method], "rank": str(rank), "scores": own, **means.of(own)})
        return {"points": points}


def _point(method: str, task: str, rank: Rank) -> dict[str, Any]:
    return {"origin": ORIGINS[method], "task": task, "rank": str(rank)}


def _serve(sums: Sums, task: str) -> None:
    """Puts one task's own model into the encoder."""
    factored, encoder = sums.factored, sums.factored.encoder
    rows = encoder.rows("weight", [task])

    def work(job: TensorJob) -> None:
        if job.factored and not sums.whole(job):
            encoder.put(job, factored.read(job, ["origin"])["origin"] + sums.of(job))
            return
        for start, count in job.slices():
            _, (own,) = rows.of(job.unit, start, count, tallied=False)
            encoder.put(job, own, start)

    encoder.each(work, rows)
