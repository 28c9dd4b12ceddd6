"""Text files of data, gzipped or not."""

import gzip
import zlib
from pathlib import Path

from taskmerge.errors import BadFile

GZIP = b"\x1f\x8b"


def whole_text(path: Path) -> str:
    """The text, without a byte order mark at its start. Raises BadFile for what is damaged or no UTF-8."""
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw.startswith(GZIP) else raw
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"is not UTF-8 (byte {error.start})", where=str(path), hint="save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadFile(f"is damaged: {error}", where=str(path), hint="download or copy it again") from None
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", where=str(path), hint="check its permissions") from error
