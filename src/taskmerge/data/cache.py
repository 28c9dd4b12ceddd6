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
from taskmerge.stops import held, unfinished
from taskmerge.types import Note

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
    """The cached items, or None if there are none or the file is not what was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        if metadata["content"] != _digest(tensors):
            return None
        return Items(
            inputs={name.removeprefix(INPUT): tensor for name, tensor in tensors.items() if name.startswith(INPUT)},
            fingerprint=metadata["fingerprint"],
            indices=tensors["indices"],
            skipped=int(metadata["skipped"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, struct.error):
        return None


def write_items(file: Path, items: Items, note: Note) -> None:
    """Keep the inputs of items for the next run. A cache that cannot be written is a note, no error."""
    tensors = {f"{INPUT}{name}": tensor.contiguous() for name, tensor in items.inputs.items()}
    tensors["indices"] = items.indices
    metadata = {"fingerprint": items.fingerprint, "skipped": str(items.skipped), "content": _digest(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(file.parent, lambda name: name == file.name)
        _write(file, tensors, metadata)
    except OSError as error:
        note(f"{file.parent}: prepared items could not be kept: {error}")


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Staged and renamed. The library's own writer would replace the staged file by one unlocked, for one user only."""
    specs = [OutputSpec(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    plan = plan_file(specs, reserve=len(json.dumps(metadata)))
    with unfinished(), held():
        staged, number = create_staging_file(file)
        try:
            with open(number, "wb", closefd=False) as target:
                target.write(header_bytes(plan, metadata))
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
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bytes_of(tensor.contiguous()))
    return digest.hexdigest()
