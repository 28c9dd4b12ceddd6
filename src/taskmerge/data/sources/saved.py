"""Data sets in Hugging Face `datasets` form: saved folders, and those of a hub."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.hub import EXTRA, load_hub_dataset
from taskmerge.data.sources.columns import lists, values_of
from taskmerge.data.sources.contract import Indices, ItemSource, existing, no_such_column, said_at, state_of
from taskmerge.data.sources.decode import decode_row
from taskmerge.data.sources.limits import AGAIN, readable
from taskmerge.documents import open_regular, read_object
from taskmerge.errors import BadFile, UsageError, unknown_name
from taskmerge.specs.suite import HubPath, Split

ROWS_AT_A_TIME = 64


def open_saved(path: Path, split: Split, name: str) -> ItemSource:
    """A folder that `save_to_disk` wrote: one data set, or a DatasetDict with split `split.name`, else `name`."""
    try:
        import datasets
    except ImportError:
        what = "a saved data set needs the package `datasets`"
        raise UsageError(what, where=said_at(split, str(path)), hint=EXTRA) from None
    check_saved(existing(path, "folder"))
    with readable("is no saved data set", str(path), "a folder that `save_to_disk` wrote"):
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        found = found[_chosen(list(found), split, name, str(path))]
    elif split.name is not None and str(found.split) not in ("None", split.name):
        raise unknown_name("split", split.name, [str(found.split)], where=split.place or str(path))
    return _source(found, split, str(path), state_of(path))


def open_hub(location: HubPath, split: Split, name: str) -> ItemSource:
    """A data set of a hub, downloaded once by `datasets` into its own cache."""
    where = str(location)
    known = load_hub_dataset(location, configuration=split.configuration)
    found = known[_chosen(list(known), split, name, where)]
    files = [file["filename"] for file in found.cache_files]
    states = (state for file in files if os.path.exists(file) for state in state_of(Path(file)))
    return _source(found, split, where, (where, str(location.revision), *states))


def check_saved(path: Path) -> dict[str, Any]:
    """What a saved folder says of itself: `splits` of several data sets, or what `datasets` says of one.

    Raises `BadFile` for a folder that is none, or whose documents and tables are no regular files.
    """
    several = path / "dataset_dict.json"
    if not several.exists():
        return _check_one(path)
    names = read_object(several).get("splits", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise BadFile("`splits` is no list of names", where=str(several), hint=AGAIN)
    for name in names:
        _check_one(path / name)
    return {"splits": names}


def _check_one(path: Path) -> dict[str, Any]:
    if not (path / "dataset_info.json").exists():
        hint = "name a folder that `save_to_disk` wrote"
        raise BadFile("is no saved data set: it has no dataset_info.json", where=str(path), hint=hint)
    document, state = read_object(path / "dataset_info.json"), read_object(path / "state.json")
    tables = state.get("_data_files")
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise BadFile("`_data_files` is no list of files", where=str(path / "state.json"), hint=AGAIN)
    for one in tables:
        os.close(open_regular(path / str(one.get("filename"))))
    return document


def _source(found: Any, split: Split, where: str, identity: tuple[str, ...]) -> ItemSource:
    """A data set's columns as a source; pictures are decoded by us, so that a bad one can be named."""
    import datasets

    if not split.x:
        hint = f"such as `x: {found.column_names[0]}`; it has {', '.join(found.column_names)}"
        raise UsageError("names no column", where=split.place or where, hint=hint)
    for column in (*split.x, *((split.y,) if split.y is not None else ())):
        if column not in found.column_names:
            raise no_such_column("column", column, found.column_names, split, where)
    kinds = found.features
    for column, kind in kinds.items():
        if isinstance(kind, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    with readable("is damaged", where):
        for column in (*split.x, *((split.y,) if split.y is not None else ())):
            found.data.column(column).validate(full=True)  # places in a mapped file are followed without a look
    items = found.select_columns(list(split.x)).with_format("arrow")
    labels = None if split.y is None else found.select_columns([split.y]).with_format("arrow")
    names = getattr(kinds[split.y], "names", None) if split.y is not None else None
    return ItemSource(
        where=where,
        identity=identity,
        length=len(found),
        read=lambda indices: _read(items, split.x, indices),
        decode=decode_row,
        place=lambda index: f"{where}: item {index}",
        labels=None if labels is None else lambda indices: values_of(labels.select(indices)[:][split.y]),
        class_names=tuple(names) if names else None,
        pictures=isinstance(kinds[split.x[0]], datasets.Image) or lists(kinds.arrow_schema.field(split.x[0]).type),
    )


def _read(items: Any, columns: Sequence[str], indices: Indices) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(indices), ROWS_AT_A_TIME):
        rows = items[list(indices[start : start + ROWS_AT_A_TIME])]
        yield from zip(*(values_of(rows[column]) for column in columns), strict=True)


def _chosen(known: list[str], split: Split, name: str, where: str) -> str:
    """The split that the suite names, else the one called as the task's split, else the only one."""
    if split.name is not None:
        if split.name not in known:
            raise unknown_name("split", split.name, known, where=said_at(split, where))
        return split.name
    if name in known or len(known) == 1:
        return name if name in known else known[0]
    hint = f"say which with `split: NAME`; it has {', '.join(known)}"
    raise UsageError(f"has no split `{name}`", where=said_at(split, where), hint=hint)
