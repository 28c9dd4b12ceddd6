"""Texts and labels from columns of a file of lines: .csv with quotes, .tsv without (as GLUE's), gzipped or not."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskmerge.data.sources.contract import ItemSource, existing, no_such_column, state_of
from taskmerge.data.sources.decode import decode_row
from taskmerge.data.sources.lines import whole_text
from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split

Row = tuple[int, list[str]]
"""A row's fields, and the line where it ends."""


def open_delimited(path: Path, split: Split) -> ItemSource:
    """One item a row; empty rows are passed over. Columns are named by the first row, or by their place from 0 in a
    file whose first row names none of them (GLUE's CoLA)."""
    if not split.x:
        raise UsageError("names no column", where=split.place or str(path), hint="such as `x: sentence`")
    wanted = (*split.x, *((split.y,) if split.y is not None else ()))
    rows = list(_rows(path))
    header = rows[0][1] if rows else []
    named = all(name in header for name in wanted)
    places = [header.index(name) for name in wanted] if named else _counted(header, wanted, split, str(path))
    found = [(line, _fields(row, places, f"{path}:{line}")) for line, row in rows[named:]]
    return ItemSource(
        where=str(path),
        identity=state_of(path),
        length=len(found),
        read=lambda indices: (found[index][1][: len(split.x)] for index in indices),
        decode=decode_row,
        place=lambda index: f"{path}:{found[index][0]}",
        labels=None if split.y is None else lambda indices: [_label(found[index][1][-1]) for index in indices],
    )


def _counted(first: Sequence[str], wanted: Sequence[str], split: Split, where: str) -> list[int]:
    """Places that are said as numbers, in a file without a header. Raises UsageError for a column that is not there."""
    for name in wanted:
        if not name.isdecimal() or len(name) > 9 or int(name) >= len(first):
            raise no_such_column("column", name, first, split, where)
    return [int(name) for name in wanted]


def _rows(path: Path) -> Iterator[Row]:
    quoted = ".csv" in path.suffixes
    text = io.StringIO(whole_text(existing(path, "file")), newline="")
    reader = csv.reader(text, strict=True) if quoted else csv.reader(text, "excel-tab", quoting=csv.QUOTE_NONE)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise BadFile(f"cannot be read: {error}", where=f"{path}:{reader.line_num}", hint="is it cut?") from None


def _fields(row: Sequence[str], places: Sequence[int], where: str) -> tuple[str, ...]:
    if max(places) >= len(row):
        what = f"has {len(row)} columns, column {max(places)} (from 0) is wanted"
        raise BadFile(what, where=where, hint="is the line cut?")
    return tuple(row[place] for place in places)


def _label(text: str) -> str | int | float:
    """A number where it is one, else the text: a class's name."""
    try:
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    except ValueError:
        return text
