"""Columns of a parquet file (or a folder of its parts): only those named, a group of rows at a time."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskmerge.data.sources.columns import lists, values_of
from taskmerge.data.sources.contract import Indices, ItemSource, existing, no_such_column, state_of
from taskmerge.data.sources.decode import decode_row
from taskmerge.data.sources.limits import readable
from taskmerge.documents import open_regular, parse_json
from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split

ROWS_AT_A_TIME = 64


def open_parquet(path: Path, split: Split) -> ItemSource:
    """Texts, pictures (bytes, or `datasets`' struct of bytes and path) and labels by column."""
    files = sorted(existing(path, "file").glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise BadFile("holds no .parquet file", where=str(path), hint="name the file or its folder")
    if not split.x:
        raise UsageError("names no column", where=split.place or str(path), hint="such as `x: text`")
    counts = [_rows(file, (*split.x, *((split.y,) if split.y is not None else ())), split) for file in files]
    y = split.y
    return ItemSource(
        where=str(path),
        identity=state_of(path),
        length=sum(counts),
        read=lambda indices: _read(files, counts, split.x, indices),
        decode=decode_row,
        place=lambda index: f"{path}: row {index}",
        labels=None if y is None else lambda indices: [row[0] for row in _read(files, counts, (y,), indices)],
        class_names=None if y is None else _class_names(files[0], y),
        pictures=_holds_pictures(files[0], split.x[0]),
    )


def _read(
    files: Sequence[Path], counts: Sequence[int], columns: Sequence[str], indices: Indices
) -> Iterator[tuple[Any, ...]]:
    """The named columns of ascending rows; groups of rows without any of them are not read."""
    start = 0
    for file, count in zip(files, counts, strict=True):
        inside = _between(indices, start, start + count)
        with readable("is damaged", str(file)), _opened(file) as parquet:
            yield from _groups(parquet, columns, [index - start for index in inside])
        start += count


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A parquet file by its footer; a page's checksum is compared where it has one."""
    import pyarrow.parquet as pq

    with open(open_regular(file), "rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
        yield parquet


def _groups(parquet: Any, columns: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
    for number, end in enumerate(itertools.accumulate(sizes)):
        start = end - sizes[number]
        if not _between(rows, start, end):
            continue
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, row_groups=[number], columns=list(columns)):
            wanted = [row - start for row in _between(rows, start, start + batch.num_rows)]
            if wanted:
                batch.validate(full=True)  # what it says of places in it is not trusted
                rows_of = batch.take(wanted)
                yield from zip(*(values_of(rows_of.column(name)) for name in columns), strict=True)
            start += batch.num_rows


def _between(sorted_rows: Sequence[int], start: int, end: int) -> Sequence[int]:
    return sorted_rows[bisect.bisect_left(sorted_rows, start) : bisect.bisect_left(sorted_rows, end)]


def parquet_header(file: Path) -> tuple[list[str], int]:
    """The columns of a file and the number of its rows."""
    with readable("is no parquet file", str(file)), _opened(file) as parquet:
        return list(parquet.schema_arrow.names), int(parquet.metadata.num_rows)


def _rows(file: Path, columns: Sequence[str], split: Split) -> int:
    """How many rows a file has, which must have these columns."""
    known, count = parquet_header(file)
    for name in columns:
        if name not in known:
            raise no_such_column("column", name, known, split, str(file))
    return count


def _class_names(file: Path, column: str) -> tuple[str, ...] | None:
    """The names of a column's classes, in the order of their numbers, where `datasets` wrote them into the metadata."""
    import pyarrow.parquet as pq

    try:
        said = parse_json((pq.read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
        names = said["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _holds_pictures(file: Path, column: str) -> bool:
    """Whether a column has bytes, or arrays, and no texts."""
    import pyarrow as pa

    with _opened(file) as parquet:
        kind = parquet.schema_arrow.field(column).type
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) or lists(kind)
