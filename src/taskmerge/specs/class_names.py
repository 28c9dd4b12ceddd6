"""Which class of the task is which of a source's: by name, or by the number that a name is."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from taskmerge.errors import BadFile, listed

ClassesBy = Literal["name", "number"]
SHOWN = 6
HINT = (
    "name the task's classes as the data does, or say in the split: `classes_by: number` (whatever its names, its "
    "class numbers are the task's), `classes_by: name` (it has only some of them)"
)
NUMBER = re.compile(r"(\D*)(\d+)")
"""`7`, `007`, `class_7`."""
NUMBERED = re.compile(r"\d+[\s._-]+(\S.*)")
"""`007.Cardinal`: a number and a name."""


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int] | None:
    """The task's class number of each of the source's, by name; None if some name is no class of the task.

    Names match as they are, or else without regard to case, `_` and `-`, or without a number before each of them, as
    long as that joins no two classes.
    """
    for spelling in (str, plain, _unnumbered):
        numbers = {spelling(name): number for number, name in enumerate(ours)}
        names = [spelling(name) for name in theirs]
        if len(numbers) == len(ours) and len(set(names)) == len(names) and all(name in numbers for name in names):
            return {number: numbers[name] for number, name in enumerate(names)}
    return None


def match_numbers(theirs: Sequence[str], classes: int) -> dict[int, int] | None:
    """The class number of each name that is a number, all after the same prefix; None if they are not these.

    They count from 0 or from 1, up to the last class of the task, each once.
    """
    found = [NUMBER.fullmatch(name) for name in theirs]
    if any(one is None for one in found) or len({one[1].casefold() for one in found if one}) != 1:
        return None
    numbers = [int(one[2]) for one in found if one]
    first = min(numbers)
    if first not in (0, 1) or sorted(numbers) != list(range(first, classes + first)):
        return None
    return {place: number - first for place, number in enumerate(numbers)}


def table_of_classes(
    theirs: Sequence[str], ours: Sequence[str], where: str, hint: str = HINT, *, by: ClassesBy | None = None
) -> tuple[Mapping[int, int], str | None]:
    """(from the source's class numbers to the task's, what to say of it).

    By `name`, it need not have all classes; by `number`, names that do not match one for one count for nothing. Raises
    BadFile, with what is left on both sides, where classes are not matched whole.
    """
    table = match_classes(theirs, ours)
    if table is not None and (by == "name" or len(table) == len(ours)):
        moved = any(number != other for number, other in table.items())
        return table, "classes matched to the task's by name, in another order" if moved else None
    numbers = match_numbers(theirs, len(ours))
    if numbers is not None:
        return numbers, "classes are named by number, taken as the task's class numbers in numerical order"
    if by == "number":
        return {number: number for number in range(len(theirs))}, None
    raise _unmatched(theirs, ours, where, hint)


def _unmatched(theirs: Sequence[str], ours: Sequence[str], where: str, hint: str) -> BadFile:
    """What to say of classes that are not the task's."""
    known, own = {plain(name) for name in ours}, {plain(name) for name in theirs}
    only_there = [name for name in theirs if plain(name) not in known]
    only_here = [name for name in ours if plain(name) not in own]
    sides = [
        f"{len(left)} only {side}: {listed(left, SHOWN)}"
        for side, left in (("there", only_there), ("in the task", only_here)) if left
    ]  # fmt: skip
    what = f"its {len(theirs)} classes are not the task's {len(ours)}" + "".join(f"; {side}" for side in sides)
    return BadFile(what, where=where, hint=hint)


def plain(name: str) -> str:
    """A name without case, `_`, `-` and doubled spaces."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _unnumbered(name: str) -> str:
    found = NUMBERED.fullmatch(name)
    return plain(found[1] if found else name)
