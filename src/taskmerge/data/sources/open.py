"""From what a suite says of a split to its source."""

from collections.abc import Callable
from pathlib import Path

from taskmerge.checkpoint.hub import resolve_data
from taskmerge.data.sources.contract import Source
from taskmerge.errors import UsageError
from taskmerge.specs.suite import HubPath, Location, Split


def open_source(split: Split, name: str, resolve: Callable[[Location], Path]) -> Source:
    """The source of a split. `name` is what the task calls it: what to look for in a data set that has several splits.

    Files on a hub are those of a data-set repository; `resolve` answers for paths. Without `split.y` nothing reads,
    checks or returns a label. Errors: `UsageError` for a column or split that is not
    there, `BadFile` for what cannot be read.
    """
    from taskmerge.data.sources import folders, jsonl, npz, parquet, saved, vision

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
        case "parquet":
            return parquet.open_parquet(path, split)
        case "images":
            return folders.open_folder(path, split, labelled)
        case "datasets":
            return saved.open_saved(path, split, name)
        case "torchvision":
            return vision.open_torchvision(path, split, name, labelled)
