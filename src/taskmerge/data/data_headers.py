"""How many items a split has, from headers, metadata and listings: no item is decoded."""

from collections.abc import Sequence
from pathlib import Path

from taskmerge.data.sources.delimited import open_delimited
from taskmerge.data.sources.limits import AGAIN, files_below
from taskmerge.data.sources.lines import read_lines
from taskmerge.data.sources.npz import array_header, array_names
from taskmerge.data.sources.parquet import parquet_header
from taskmerge.data.sources.saved import check_saved
from taskmerge.documents import parse_json
from taskmerge.errors import BadFile, listed
from taskmerge.specs.suite import Split


def size_of(split: Split, key: str) -> tuple[int | None, str]:
    """The number of items of a split on this machine (None where only reading it all would tell) and a few words.

    `key` is what the task calls the split: the one to look for where a folder has several and none is named.
    Raises BadFile for a file that is damaged or lacks the arrays or columns that the split names.
    """
    path = split.location
    if not isinstance(path, Path):
        return None, ""
    names = (*split.x, *((split.y,) if split.y else ()))
    if split.form == "npz":
        return _npz(path, names)
    if split.form == "jsonl":
        return _jsonl(path, names)
    if split.form == "delimited":
        return open_delimited(path, split).length, "rows"
    if split.form == "parquet":
        return _parquet(path, names)
    return _images(path) if split.form == "images" else _saved(path, split.name or key, names)


def _npz(path: Path, names: Sequence[str]) -> tuple[int, str]:
    """The arrays' shapes, from the headers inside the archive."""
    _need(path, names, array_names(path), "arrays")
    found = {name: array_header(path, name) for name in names}
    headers = {name: header for name, header in found.items() if header is not None}
    counts = {name: header.shape[0] if header.shape else 0 for name, header in headers.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise BadFile(f"the arrays have different lengths: {said}", where=str(path), hint="check x and y")
    first = headers[names[0]]
    return counts[names[0]], f"{first.dtype} {' x '.join(map(str, first.shape[1:]))}".strip()


def _jsonl(path: Path, names: Sequence[str]) -> tuple[None, str]:
    """The first record's keys; only reading the whole file would tell how many there are."""
    lines = read_lines(path)
    try:
        first = parse_json(next(lines, b"null"), constants=True)
    except ValueError as error:
        raise BadFile(f"is not JSON: {error}", where=f"{path}:1", hint="one object a line") from None
    finally:
        lines.close()
    if not isinstance(first, dict):
        raise BadFile("the first line is no JSON object", where=str(path), hint="one object a line")
    _need(path, names, list(first), "keys")
    return None, f"records of {', '.join(first)}"


def _parquet(path: Path, names: Sequence[str]) -> tuple[int, str]:
    columns, count = parquet_header(path)
    _need(path, names, columns, "columns")
    return count, f"columns {', '.join(columns)}"


def _images(path: Path) -> tuple[int, str]:
    """Files in class folders, not counting hidden ones."""
    folders = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    if not folders:
        raise BadFile("has no class folders", where=str(path), hint="one folder a class, with its pictures inside")
    count = sum(1 for folder in folders for one in files_below(folder) if not one.name.startswith("."))
    return count, f"{len(folders)} class folders"


def _saved(path: Path, wanted: str, names: Sequence[str]) -> tuple[int | None, str]:
    """What `datasets` wrote beside the data."""
    said = check_saved(path)
    if (path / "dataset_dict.json").exists():
        if wanted not in said["splits"]:
            known = listed(said["splits"], plain=True)
            raise BadFile(f"has no split `{wanted}`", where=str(path), hint=f"`split:` is one of {known}")
        path = path / wanted
        said = check_saved(path)
    features, splits = said.get("features") or {}, said.get("splits") or {}
    if not isinstance(features, dict) or not isinstance(splits, dict):
        raise BadFile("`features` or `splits` is malformed", where=str(path / "dataset_info.json"), hint=AGAIN)
    _need(path, names, list(features), "columns")
    sizes = [one.get("num_examples") for one in splits.values() if isinstance(one, dict)]
    count = sizes[0] if len(sizes) == 1 and type(sizes[0]) is int and sizes[0] >= 0 else None
    return count, f"columns {', '.join(features)}"


def _need(path: Path, names: Sequence[str], there: Sequence[str], kind: str) -> None:
    """Refuses a file without the named arrays or columns."""
    lacking = [name for name in names if name not in there]
    if lacking:
        what = f"has no {' and no '.join(f'`{name}`' for name in lacking)}"
        raise BadFile(what, where=str(path), hint=f"its {kind}: {', '.join(there)}")
