"""Text files of data, gzipped or not."""

import gzip
import io
import os
from collections.abc import Generator
from pathlib import Path
from typing import cast

from taskmerge.data.sources.limits import readable
from taskmerge.documents import expandable, open_regular, too_expansive
from taskmerge.errors import BadFile

GZIP = b"\x1f\x8b"
LONGEST = 64 << 20
"""Bytes of a line."""


def whole_text(path: Path) -> str:
    """The text, without a byte order mark at its start. Raises BadFile for what is damaged, a bomb, or no UTF-8."""
    try:
        return b"".join(read_lines(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 (byte {error.start})", where=str(path), hint="save it as UTF-8") from None


def read_lines(path: Path) -> Generator[bytes, None, None]:
    """The lines of a file, one at a time. Raises `BadFile` where it is damaged or a bomb."""
    with open(open_regular(path), "rb") as file, readable("is damaged", str(path)):
        stored = os.fstat(file.fileno()).st_size
        packed = file.peek(2).startswith(GZIP)
        stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file))) if packed else file
        left = expandable(stored) if packed else stored
        while line := stream.readline(LONGEST + 1):
            left -= len(line)
            if left < 0 and packed:
                raise too_expansive(stored, str(path))
            if len(line) > LONGEST:
                raise BadFile(f"a line is longer than {LONGEST >> 20} MiB", where=str(path), hint="one object a line")
            yield line
