"""How many items a split has, from headers, metadata and listings: no item is decoded."""

import gzip
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskmerge.data.sources.delimited import open_delimited
from taskmerge.errors import BadFile
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
    from numpy.lib import format as npy

    with zipfile.ZipFile(path) as archive:
        _need(path, names, [name.removesuffix(".npy") for name in archive.namelist()], "arrays")
        shapes = {}
        for name in names:
            with archive.open(f"{name}.npy") as file:
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shapes[name] = read(file)
    counts = {name: shape[0] if shape else 0 for name, (shape, _, _) in shapes.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise BadFile(f"the arrays have different lengths: {said}", where=str(path), hint="check x and y")
    shape, _, dtype = shapes[names[0]]
    return counts[names[0]], f"{dtype} {' x '.join(map(str, shape[1:]))}".strip()


def _jsonl(path: Path, names: Sequence[str]) -> tuple[None, str]:
    """The first record's keys; only reading the whole file would tell how many there are."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        first: Any = json.loads(file.readline() or "null")
    if not isinstance(first, dict):
        raise BadFile("the first line is no JSON object", where=str(path), hint="one object a line")
    _need(path, names, list(first), "keys")
    return None, f"records of {', '.join(first)}"


def _parquet(path: Path, names: Sequence[str]) -> tuple[int, str]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    columns = metadata.schema.to_arrow_schema().names
    _need(path, names, columns, "columns")
    return int(metadata.num_rows), f"columns {', '.join(columns)}"


def _images(path: Path) -> tuple[int, str]:
    """Files in class folders, not counting hidden ones."""
    folders = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    if not folders:
        raise BadFile("has no class folders", where=str(path), hint="one folder a class, with its pictures inside")
    count = sum(1 for folder in folders for one in folder.rglob("*") if one.is_file() and not one.name.startswith("."))
    return count, f"{len(folders)} class folders"


def _saved(path: Path, wanted: str, names: Sequence[str]) -> tuple[int | None, str]:
    """What `datasets` wrote beside the data."""
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        if wanted not in splits:
            raise BadFile(f"has no split `{wanted}`", where=str(path), hint=f"`split:` is one of {', '.join(splits)}")
        path = path / wanted
    if not (path / "dataset_info.json").is_file():
        raise BadFile("is no folder that `datasets` saved", where=str(path), hint="save it with `save_to_disk`")
    said = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    columns = list(said.get("features") or {})
    _need(path, names, columns, "columns")
    sizes = [one.get("num_examples") for one in (said.get("splits") or {}).values()]
    return sizes[0] if len(sizes) == 1 else None, f"columns {', '.join(columns)}"


def _need(path: Path, names: Sequence[str], there: Sequence[str], kind: str) -> None:
    """Refuses a file without the named arrays or columns."""
    lacking = [name for name in names if name not in there]
    if lacking:
        what = f"has no {' and no '.join(f'`{name}`' for name in lacking)}"
        raise BadFile(what, where=str(path), hint=f"its {kind}: {', '.join(there)}")
