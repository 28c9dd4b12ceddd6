"""The numbers of a figure as tables: what its specification holds as data, under the titles of its axes. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskmerge.reports.figures import Figure
from taskmerge.reports.tables import NOTHING, Cell, Table

MOST = 400
"""Rows of a figure's numbers that are written out; a note says how many more the report holds."""


def numbers(figure: Figure) -> list[Table]:
    """A table for each set of values that the figure draws."""
    titles = dict(reversed([*_titles(figure.spec)]))  # what is said first holds
    return [_table(figure.title, rows, titles) for rows in _data(figure.spec)]


def _table(title: str, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Table:
    keys = list(dict.fromkeys(key for row in rows[:MOST] for key in row))
    shown = [[_written(row.get(key)) for key in keys] for row in rows[:MOST]]
    heads = [titles.get(key, key.replace("_", " ")) for key in keys]
    notes = (f"{MOST:,} of {len(rows):,} rows; the report holds all",) if len(rows) > MOST else ()
    cells = tuple(tuple(Cell(value) for value in row[1:]) for row in shown)
    return Table(f"{title}: the numbers", heads[0], tuple(heads[1:]), tuple(row[0] for row in shown), cells, notes)


def _written(value: object) -> str:
    """Four digits are more than an eye takes from a plot."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _data(spec: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The sets of values in a specification, each once, empty ones left out."""
    named = spec.get("datasets", {})
    found: list[list[Mapping[str, Any]]] = []
    for data in under(spec, "data"):
        values = named.get(data.get("name")) if "name" in data else data.get("values")
        if isinstance(values, list) and any(values) and values not in found:
            found.append(values)
    return found


def _titles(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and title, wherever an encoding says both."""
    for encoding in under(spec, "encoding"):
        for channel in encoding.values():
            for one in channel if isinstance(channel, list) else [channel]:
                if isinstance(one, Mapping) and isinstance(one.get("title"), str) and isinstance(one.get("field"), str):
                    yield one["field"], one["title"]


def under(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Every map under a key, outermost first; data themselves are not searched."""
    if isinstance(value, list | tuple):
        for own in value:
            yield from under(own, key)
    elif isinstance(value, Mapping):
        if isinstance(value.get(key), Mapping):
            yield value[key]
        for name, own in value.items():
            if name not in ("data", "datasets"):
                yield from under(own, key)
