"""Hundreds of tensors as the few rows that a picture has room for: by block and role, by block, or by runs of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from taskmerge.errors import plain
from taskmerge.experts.classes import block_of, depths, in_sequence
from taskmerge.experts.tensors import role_of
from taskmerge.reports.charting import shown_names

MOST_ROWS, FEWEST_ROWS, CELLS = 40, 12, 480
"""Rows of a heat map, and cells that it has room for."""
OUTSIDE = "outside blocks"
ROLES = {"attention": "attention", "mlp": "MLP", None: "other"}
"""Of a tensor of a block, as its name tells; norms are `other`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the model a tensor is: the tower of its block and that block's number in the tower's sequence (None
    outside blocks), and what the block's part does."""

    tower: str | None
    depth: int | None
    role: str

    @property
    def inside(self) -> bool:
        return self.depth is not None


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share a row, and what it is called."""

    label: str
    names: tuple[str, ...]


def rows_for(columns: int) -> int:
    """How many rows a heat map of so many columns has room for."""
    return max(FEWEST_ROWS, min(MOST_ROWS, CELLS // max(1, columns)))


def places(names: Iterable[str]) -> dict[str, Place]:
    """The place of every tensor. Stages, such as ResNets', count as one sequence; `tower` is told where there are
    several."""
    names = list(names)
    sequences = in_sequence(depths(names))
    blocks = {name: block_of(name) for name in names}
    found = {}
    for name, block in blocks.items():
        if block is None:
            found[name] = Place(None, None, ROLES[None])
        else:
            before, _ = sequences[block.tower]
            found[name] = Place(_sequence(block.tower, sequences), before + block.index, ROLES[role_of(name)])
    return found


def grouped(names: Iterable[str], most: int = MOST_ROWS) -> list[Group]:
    """At most `most` groups, the first block first: by block and role if these are few enough, else by block, else by
    runs of blocks; what is outside blocks is one group before them. Without any block, a few tensors stay apart."""
    where = places(names)
    towers = sorted({place.tower for place in where.values() if place.tower is not None})
    if not towers and len(where) <= most:
        return [Group(label, (name,)) for name, label in shown_names(sorted(where)).items()]
    found = _by(where, lambda place: f"{_block(place, towers, 1)} {place.role}")
    run, deepest = 1, max(place.depth or 0 for place in where.values())
    while len(found) > most and run <= 2 * deepest + 2:
        found = _by(where, partial(_block, towers=towers, run=run))
        run *= 2
    return found


def _by(where: Mapping[str, Place], label: Callable[[Place], str]) -> list[Group]:
    groups: dict[str, list[str]] = {}
    for name in sorted(where, key=lambda name: _order(name, where[name])):
        place = where[name]
        groups.setdefault(label(place) if place.inside else OUTSIDE, []).append(name)
    return [Group(label, tuple(members)) for label, members in groups.items()]


def _order(name: str, place: Place) -> tuple[bool, str, int, int, str]:
    role = list(ROLES.values()).index(place.role)
    return place.inside, place.tower or "", place.depth or 0, role, name


def _block(place: Place, towers: list[str], run: int) -> str:
    """`block 3`, or the run of blocks that it is in; the tower's name before it where there are several."""
    first = (place.depth or 0) // run * run
    number = f"block {first}" if run == 1 else f"blocks {first}–{first + run - 1}"
    return number if len(towers) < 2 else f"{plain(place.tower or '')} {number}"


def _sequence(tower: str, sequences: Mapping[str, tuple[int, int]]) -> str:
    """The first stage's name stands for its whole sequence."""
    stem = tower.rstrip("0123456789")
    firsts = [other for other, (before, _) in sequences.items() if before == 0 and other.rstrip("0123456789") == stem]
    return firsts[0] if firsts else tower
