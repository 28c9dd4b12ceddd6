"""Small files, beside a checkpoint or by themselves: written at once or not at all, and there after a crash."""

import os
import stat
from pathlib import Path

from taskmerge.checkpoint.disk import explained
from taskmerge.checkpoint.staging import create_staging_file, remove, remove_stale
from taskmerge.checkpoint.switching import sync_folder
from taskmerge.stops import held, unfinished


def write_small(path: Path, content: bytes | str) -> None:
    """Replaces `path` by `content`, with the mode that it had. Raises BadOutput where it cannot be written; the old
    file is then still there."""
    data = content.encode() if isinstance(content, str) else content
    with unfinished(), held(), explained(path):
        remove_stale(path.parent, lambda name: name == path.name)
        staged, number = create_staging_file(path)
        try:
            with open(number, "wb") as target:
                target.write(data)
                target.flush()
                os.fsync(number)
                if path.exists():
                    os.chmod(staged, stat.S_IMODE(path.stat().st_mode))
                os.replace(staged, path)
        except BaseException:
            remove(staged)
            raise
        sync_folder(path.parent)
