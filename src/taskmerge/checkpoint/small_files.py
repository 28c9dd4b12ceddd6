"""Small files beside a checkpoint: written at once or not at all, and there after a crash."""

import os
from pathlib import Path

from taskmerge.checkpoint.publish import sync_folder
from taskmerge.checkpoint.staging import create_staging_file, remove
from taskmerge.errors import BadOutput


def write_small(path: Path, content: bytes | str) -> None:
    """Replaces `path` by `content`. Raises BadOutput where it cannot be written; the old file is then still there."""
    data = content.encode() if isinstance(content, str) else content
    try:
        staged, number = create_staging_file(path)
        try:
            with open(number, "wb") as target:
                target.write(data)
                target.flush()
                os.fsync(target.fileno())
                os.replace(staged, path)
        except BaseException:
            remove(staged)
            raise
        sync_folder(path.parent)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise BadOutput(what, where=str(path), hint="free space, or choose another output with -o") from error
