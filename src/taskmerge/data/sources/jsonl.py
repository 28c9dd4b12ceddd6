"""Texts and labels from JSON lines, gzipped or not."""

from pathlib import Path
from typing import Any

from taskmerge.data.sources.contract import ItemSource, existing, no_such_column, state_of
from taskmerge.data.sources.decode import decode_row
from taskmerge.data.sources.lines import read_lines
from taskmerge.documents import parse_json
from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split


def open_jsonl(path: Path, split: Split) -> ItemSource:
    """One item a line; lines without text are passed over. Only the keys that the split names are kept."""
    if not split.x:
        raise UsageError("names no key", where=split.place or str(path), hint="such as `x: text`")
    wanted = (*split.x, *((split.y,) if split.y is not None else ()))
    rows: list[tuple[Any, ...]] = []
    lines: list[int] = []
    for number, line in enumerate(read_lines(existing(path, "file")), 1):
        if line.strip():
            rows.append(_row(line, wanted, path, number, split, first=not rows))
            lines.append(number)
    return ItemSource(
        where=str(path),
        identity=state_of(path),
        length=len(rows),
        read=lambda indices: (rows[index][: len(split.x)] for index in indices),
        decode=decode_row,
        place=lambda index: f"{path}:{lines[index]}",
        labels=None if split.y is None else lambda indices: [rows[index][-1] for index in indices],
    )


def _row(
    line: bytes, wanted: tuple[str, ...], path: Path, number: int, split: Split, *, first: bool
) -> tuple[Any, ...]:
    where = f"{path}:{number}"
    try:
        found = parse_json(line, constants=True)
    except ValueError as error:
        raise BadFile(f"is not JSON: {error}", where=where, hint="one object a line") from None
    if not isinstance(found, dict):
        raise BadFile("is not an object", where=where, hint='each line looks like {"text": "...", "label": 0}')
    for name in wanted:
        if name not in found and first:
            raise no_such_column("key", name, list(found), split, str(path))
        if name not in found:
            raise BadFile(f"lacks the key `{name}`", where=where, hint=f"it has {', '.join(found) or 'none'}")
    return tuple(found[name] for name in wanted)
