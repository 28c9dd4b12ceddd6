"""How every kind of sweep is carried out: what is stored is passed over, what is found is stored, someone counts."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taskmerge.checkpoint.staging import staging_folder
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.points import FOLDER, Point, Points, Result

Measure = Callable[[], Result]


@dataclass(frozen=True, slots=True)
class Planned:
    """A point, and how many items are encoded to measure it."""

    point: Point
    items: int


class Sweep(Protocol):
    """One kind of sweep. Points are known before the work; `walk` passes them in one fixed order."""

    @property
    def kind(self) -> str: ...

    @property
    def options(self) -> dict[str, Any]:
        """What its results depend on beside what all kinds do, as plain values."""
        ...

    def points(self) -> list[Planned]:
        """All points. Raises UsageError where the kind says nothing about these experts."""
        ...

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        """Every point with what measures it, valid until the next is asked for; `scratch` is an empty folder."""
        ...

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        """Its part of the report."""
        ...


def missing(sweep: Sweep, found: Points) -> list[Planned]:
    """The points that are still to be measured."""
    return [planned for planned in sweep.points() if planned.point not in found]


def carry_out(sweep: Sweep, found: Points, folder: Path) -> None:
    """Measures what is missing, and stores each point as it is found."""
    left = len(missing(sweep, found))
    if not left:
        return
    with ExitStack() as stack:
        scratch = stack.enter_context(staging_folder(folder / FOLDER / "scratch"))
        for point, measure in sweep.walk(scratch):
            if point in found:
                continue
            found.add(point, measure())
            left -= 1
            if not left:
                return


def entries(sweep: Sweep, found: Points) -> Iterable[tuple[Point, Result]]:
    """Every point with its result, in the order of the plan."""
    return [(planned.point, found[planned.point]) for planned in sweep.points()]
