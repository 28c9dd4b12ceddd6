"""What tests ask of every figure: that it is drawn, that what it encodes is there, and that it stays small."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from taskmerge.reports import charts
from taskmerge.reports.figures import Figure

LARGEST = 60_000
"""Bytes of a specification."""
HOSTILE = ("<script>alert(1)</script>", "a\"b'c\\d", "new\nline\tand\x1b[31m", "a.b[0].c", "‮right to left", "n" * 300)
"""Names that are data, and nothing else."""


def rows_of(figure: Figure) -> list[dict[str, Any]]:
    """All rows of data in a figure, in their order."""
    sets: Mapping[str, Any] = figure.spec.get("datasets", {})  # type: ignore[assignment]
    return [row for rows in sets.values() for row in rows]


def check(figures: list[Figure]) -> None:
    """Every figure has words, is drawn wide and narrow, encodes only fields that its data have, and is small."""
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.title
        assert figure.caption
        assert any(sign.isdigit() for sign in figure.alternative), figure.name
        assert "config" not in figure.spec
        assert len(json.dumps(figure.spec)) < LARGEST, figure.name
        keys = {key for row in rows_of(figure) for key in row}
        assert set(_fields(figure.spec)) <= keys, figure.name
        assert charts.wide(figure).inside
        assert charts.narrow(figure).inside


def _fields(value: Any) -> Iterator[str]:
    """Every field that a specification names, data left out."""
    if isinstance(value, Mapping):
        for key, own in value.items():
            if key == "field" and isinstance(own, str):
                yield own
            elif key != "datasets":
                yield from _fields(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _fields(own)
