"""Small files that commands write: whole or not at all, and never over another without --overwrite.

Devices and pipes (/dev/stdout, `>(gzip > report.json.gz)`) are written as they are.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from taskmerge.checkpoint.disk import explained
from taskmerge.checkpoint.small_files import write_small
from taskmerge.errors import BadOutput


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises BadOutput, before any work, where `path` exists already or cannot be written."""
    if path.is_dir():
        raise BadOutput("is a folder, not a file", where=str(path), hint="name a file in it")
    if is_device(path):
        return
    if (path.exists() or path.is_symlink()) and not overwrite:
        hint = "pass --overwrite to replace it, or choose another name"
        raise BadOutput("exists already", where=str(path), hint=hint)
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BadOutput(
            "cannot be written: its folder does not allow it", where=str(path), hint="choose another folder"
        )


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises BadOutput, before any work, where `folder` is no place for new files: it has some, or cannot be one."""
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        hint = "pass --overwrite to replace files of the same names, or choose another folder"
        raise BadOutput("holds files already", where=str(folder), hint=hint)
    if folder.exists() and not folder.is_dir():
        raise BadOutput("is a file, not a folder", where=str(folder), hint="choose another name")
    check_target(folder / "file", overwrite=True)


def is_device(path: Path) -> bool:
    """Whether something is there that is neither file nor folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str, *, overwrite: bool) -> None:
    """Writes a text file whole, or not at all. Raises BadOutput."""
    write_bytes(path, text.encode("utf-8", "replace"), overwrite=overwrite)


def write_bytes(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Writes a file whole, or not at all. Raises BadOutput."""
    with explained(path):
        if is_device(path):
            path.write_bytes(content)
            return
        final = Path(os.path.realpath(path))
        final.parent.mkdir(parents=True, exist_ok=True)
        check_target(path, overwrite=overwrite)  # it may have come into being meanwhile
        write_small(final, content)


def write_files(folder: Path, files: Mapping[str, str | bytes], *, overwrite: bool) -> None:
    """Writes files by name into a folder; if one cannot be written, those that were not there before go again."""
    new = [folder / name for name in files if not (folder / name).exists()]
    try:
        for name, content in files.items():
            data = content.encode("utf-8", "replace") if isinstance(content, str) else content
            write_bytes(folder / name, data, overwrite=overwrite)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
