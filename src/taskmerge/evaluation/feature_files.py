"""Features of samples as a file beside a report: tensors, and in the metadata whose they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.errors import BadFile
from taskmerge.evaluation.features import MOST
from taskmerge.evaluation.scores import FeatureSet

NAME = "features.safetensors"
"""Under which a page looks for it, in the folder of the report."""
KIND = "features"
PARTS = ("features", "predicted", "labels", "places")
TYPES: Mapping[str, torch.dtype] = {
    "features": torch.float32, "predicted": torch.float64, "labels": torch.float64, "places": torch.int64,
}  # fmt: skip
AGAIN = "write it again with `taskmerge eval --features`"


def write_features(path: Path, sets: Sequence[FeatureSet], *, overwrite: bool = False) -> None:
    """Writes features: set I as tensors `I.features` [n, D], `I.predicted`, `I.labels` and `I.places` [n].

    Raises BadNumber for NaN or infinity, BadOutput where the file exists (without `overwrite`) or cannot be written.
    """
    record = {"kind": KIND, "sets": [_said(own) for own in sets]}
    tensors = {
        f"{number}.{part}": torch.from_numpy(getattr(own, part)) for number, own in enumerate(sets) for part in PARTS
    }
    write_tensors(path, tensors, record, overwrite=overwrite)


def read_features(path: Path) -> tuple[FeatureSet, ...]:
    """The features in a file. Raises BadFile for one that holds none."""
    with open_plain(path) as file:
        record = provenance_of(file) or {}
        if record.get("kind") != KIND:
            raise BadFile("holds no features that `taskmerge eval` kept", where=str(path), hint=AGAIN)
        listed: Any = record["sets"]
        names = {f"{number}.{part}" for number in range(len(listed)) for part in PARTS}
        if names != set(file.specs):
            raise BadFile("does not hold what it says", where=str(path), hint=AGAIN)
        sets = tuple(_read(file, number, said) for number, said in enumerate(listed))
        file.check_unchanged()
    return sets


def of_report(sets: Sequence[FeatureSet], document: Mapping[str, Any]) -> tuple[FeatureSet, ...]:
    """Those of a report's own checkpoints and data: a file beside it may be of another run."""
    checkpoints = {(one["name"], one.get("digest")) for one in document["checkpoints"]}
    data = {(one["task"], one.get("fingerprint")) for one in document["data"]}
    return tuple(
        own for own in sets if (own.encoder, own.digest) in checkpoints and (own.task, own.fingerprint) in data
    )


def _said(own: FeatureSet) -> dict[str, object]:
    return {
        "checkpoint": own.encoder, "task": own.task, "digest": own.digest, "fingerprint": own.fingerprint,
        "task_kind": own.kind, "classes": list(own.classes),
    }  # fmt: skip


def _read(file: Checkpoint, number: int, said: Mapping[str, Any]) -> FeatureSet:
    tensors = {part: _tensor(file, f"{number}.{part}", TYPES[part]) for part in PARTS}
    count = len(tensors["features"])
    fits = tensors["features"].ndim == 2 and all(tensors[part].shape == (count,) for part in PARTS[1:])
    if not fits or not 0 < count <= MOST or not bool(torch.isfinite(tensors["features"]).all()):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
        raise BadFile(f"is malformed: {shapes}", where=f"{file.path}: `{number}`", hint=AGAIN)
    arrays: dict[str, Any] = {part: tensor.numpy() for part, tensor in tensors.items()}
    return FeatureSet(
        encoder=said["checkpoint"], task=said["task"], digest=said["digest"], fingerprint=said["fingerprint"],
        kind=said["task_kind"], classes=tuple(said["classes"]), **arrays,
    )  # fmt: skip


def _tensor(file: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    tensor = file.tensor(name)
    if tensor.dtype != dtype:
        raise BadFile(f"{tensor.dtype} where {dtype} is due", where=f"{file.path}: `{name}`", hint=AGAIN)
    return tensor
