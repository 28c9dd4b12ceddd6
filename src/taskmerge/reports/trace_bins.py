"""A trace as the few hundred points that a plot has room for: means over windows of updates. Read line by line."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmerge.adaptation.trace import StepRecord
from taskmerge.errors import BadFile

POINTS = 200
"""Of all tasks together: every one of them can be pointed at, which takes room."""
MOST, FEWEST = 40, 12
"""Windows of a task's line."""
OF_TASKS = ("loss", "agreement", "entropy", "largest_class", "kept")
OF_UPDATES = ("mean", "low", "high", "zero")


@dataclass(frozen=True, slots=True)
class Point:
    """One window of one curve: the mean update of what is in it, the mean of the values, and how many they are."""

    update: float
    value: float
    n: int


Curve = Sequence[Point]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a trace comes to. `window` is how many updates a point stands for; `of_tasks` has curves by what they are
    of (`OF_TASKS`) and task, `coefficients` those of `OF_UPDATES`; `flips` are sums over windows, `components` the
    kept share; `held_out` and `watched` have every point that there is, by task, and `split` is that of `watched`."""

    updates: int
    window: int
    of_tasks: Mapping[str, Mapping[str, Curve]]
    coefficients: Mapping[str, Curve]
    flips: Curve
    components: Curve
    held_out: Mapping[str, Curve]
    watched: Mapping[str, Curve]
    split: str | None = None


@dataclass
class _Sums:
    """Sums over one window."""

    values: float = 0.0
    updates: float = 0.0
    n: int = 0

    def add(self, update: int, value: float) -> None:
        self.values, self.updates, self.n = self.values + value, self.updates + update, self.n + 1

    def point(self, *, total: bool = False) -> Point:
        return Point(self.updates / self.n, self.values if total else self.values / self.n, self.n)


@dataclass
class _Bins:
    """Curves that grow as records come in."""

    width: int
    curves: dict[tuple[str, str], dict[int, _Sums]] = field(default_factory=dict)

    def add(self, kind: str, name: str, update: int, value: object, where: str) -> None:
        """Adds a value, if there is one; the start is a window of its own. Raises BadFile for what is no number."""
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadFile(f"update {update}: `{name}` is {value!r}, no number", where=where, hint="adapt again")
        place = 0 if update == 0 else (update - 1) // self.width + 1
        self.curves.setdefault((kind, name), {}).setdefault(place, _Sums()).add(update, float(value))

    def of(self, kind: str, *, total: bool = False) -> dict[str, Curve]:
        """The curves of a kind by name, in the order of names: that in which tasks come up may be random."""
        return {
            name: tuple(sums.point(total=total) for _, sums in sorted(windows.items()))
            for (own, name), windows in sorted(self.curves.items()) if own == kind
        }  # fmt: skip


def windows_of(tasks: int) -> int:
    """How many points a task's curve may have."""
    return max(FEWEST, min(MOST, POINTS // max(1, tasks)))


def binned(records: Iterable[StepRecord], updates: int, tasks: int, where: str = "trace.jsonl") -> Trace:
    """The curves of a trace of so many updates and tasks. Raises BadFile for values that are none."""
    width = max(1, math.ceil(updates / windows_of(tasks)))
    means, every = _Bins(width), _Bins(1)
    last, split = 0, None
    for record in records:
        last = record.update
        _add_record(record, means, where)
        for name, value in _items(record.held_out, where):
            every.add("held_out", name, last, value, where)
        watched = dict(_items(record.watched, where))
        for name, value in _items(watched.get("scores"), where):
            every.add("watched", name, last, value, where)
        split = str(watched.get("split", split)) if watched else split
    one = means.of("update")
    flips = means.of("flips", total=True).get("flips", ())
    return Trace(
        updates=last, window=width, of_tasks={kind: means.of(kind) for kind in OF_TASKS},
        coefficients={name: one[name] for name in OF_UPDATES if name in one},
        flips=flips if any(point.value for point in flips) else (), components=one.get("kept_components", ()),
        held_out=every.of("held_out"), watched=every.of("watched"), split=split,
    )  # fmt: skip


def _add_record(record: StepRecord, means: _Bins, where: str) -> None:
    """One line: what it says of each task, and of the update."""
    for task, own in record.tasks.items():
        for kind in OF_TASKS:
            means.add(kind, task, record.update, getattr(own, kind), where)
    for name, value in _items(record.coefficients, where):
        if name in OF_UPDATES:
            means.add("update", name, record.update, value, where)
    means.add("update", "kept_components", record.update, record.kept_components, where)
    if record.update:
        means.add("flips", "flips", record.update, record.flips, where)


def _items(values: object, where: str) -> Iterator[tuple[str, Any]]:
    """The entries of what should be a mapping, or nothing."""
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise BadFile(f"has {type(values).__name__} where names and numbers are due", where=where, hint="adapt again")
    yield from values.items()
