"""Prepared inputs on disk, never labels: written at once or not at all, checked when read, rebuilt when in doubt."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskmerge.checkpoint.canonical import OutputSpec, header_bytes, plan_file
from taskmerge.checkpoint.dtypes import CODES, bytes_of
from taskmerge.checkpoint.staging import create_staging_file, remove, remove_stale
from taskmerge.data.items import Items
from taskmerge.data.sources.contract import Note

FORMAT = 1
ENDING = ".items"
INPUT = "input."


def default_cache() -> Path:
    """The folder of prepared items: TASKMERGE_CACHE, else `taskmerge` in the user's cache folder."""
    if chosen := os.environ.get("TASKMERGE_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "taskmerge"


def cache_file(folder: Path, *parts: object) -> Path:
    """The file for items that all of `parts` (JSON values) determine."""
    key = hashlib.sha256(json.dumps([FORMAT, *parts], ensure_ascii=True).encode()).hexdigest()
    return folder / f"{key}{ENDING}"


def read_items(file: Path) -> Items | None:
    """The cached items, without labels, or None if there are none or the file is not what was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        if said["content"] != _digest(tensors):
            return None
        return Items(
            inputs={name.removeprefix(INPUT): one for name, one in tensors.items() if name.startswith(INPUT)},
            labels=None,
            fingerprint=said["fingerprint"],
            indices=tensors["indices"],
            skipped=int(said["skipped"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, struct.error):
        return None


def write_items(file: Path, items: Items, note: Note) -> None:
    """Keep the inputs of items for the next run. A cache that cannot be written is a note, no error."""
    tensors = {f"{INPUT}{name}": one.contiguous() for name, one in items.inputs.items()}
    tensors["indices"] = items.indices
    said = {"fingerprint": items.fingerprint, "skipped": str(items.skipped), "content": _digest(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(file.parent, lambda name: name == file.name)
        _write(file, tensors, said)
    except OSError as error:
        note(f"{file.parent}: prepared items could not be kept: {error}")


def _write(file: Path, tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Staged and renamed. The library's own writer would replace the staged file by one unlocked, for one user only."""
    specs = [OutputSpec(name, CODES[one.dtype], tuple(one.shape)) for name, one in tensors.items()]
    plan = plan_file(specs, reserve=len(json.dumps(said)))
    staged, number = create_staging_file(file)
    try:
        with open(number, "wb", closefd=False) as target:
            target.write(header_bytes(plan, said))
            for spec in plan.specs:
                target.write(bytes_of(tensors[spec.name]))
        os.replace(staged, file)
    except BaseException:
        remove(staged)
        raise
    finally:
        os.close(number)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(bytes_of(tensor.contiguous()))
    return found.hexdigest()
