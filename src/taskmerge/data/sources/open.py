"""From what a suite says of a split to its source."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from taskmerge.checkpoint.hub import resolve_data
from taskmerge.data.sources.contract import ItemSource
from taskmerge.errors import UsageError
from taskmerge.specs.suite import HubPath, Location, Split


def open_source(split: Split, name: str, resolve: Callable[[Location], Path]) -> ItemSource:
    """The source of a split. `name` is what the task calls it: what to look for in a data set that has several splits.

    Files on a hub are those of a data-set repository; `resolve` answers for paths. Without `split.y` nothing reads,
    checks or returns a label. Errors: `UsageError` for a column or split that is not
    there, `BadFile` for what cannot be read.
    """
    source = _opened(split, name, resolve)
    return replace(source, identity=(*source.identity, *_chosen(split, name)), classes_by=split.classes_by)


def _chosen(split: Split, name: str) -> tuple[str, ...]:
    """What was picked of the data at one place: two splits or columns of one file are not the same items."""
    picked = split.name or (name if split.form in ("hub", "datasets", "torchvision") else "")
    return (split.form, split.dataset or "", split.configuration or "", picked, *split.x)


def _opened(split: Split, name: str, resolve: Callable[[Location], Path]) -> ItemSource:
    from taskmerge.data.sources import delimited, folders, jsonl, npz, parquet, saved, vision

    location, labelled = split.location, split.y is not None
    if split.form == "hub":
        if not isinstance(location, HubPath):
            raise UsageError("names no hub data set", where=split.place, hint="such as `hub: org/name`")
        return saved.open_hub(location, split, name)
    if location is None:
        raise UsageError("names no file or folder", where=split.place, hint="say where the data lie")
    path = resolve_data(location) if isinstance(location, HubPath) else resolve(location)
    match split.form:
        case "npz":
            return npz.open_npz(path, split)
        case "jsonl":
            return jsonl.open_jsonl(path, split)
        case "delimited":
            return delimited.open_delimited(path, split)
        case "parquet":
            return parquet.open_parquet(path, split)
        case "images":
            return folders.open_folder(path, split, labelled)
        case "datasets":
            return saved.open_saved(path, split, name)
        case "torchvision":
            return vision.open_torchvision(path, split, name, labelled)
