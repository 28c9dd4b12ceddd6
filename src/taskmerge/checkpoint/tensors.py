"""A file of a few tensors, written as a whole: heads, adapters of features, blocks."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.dtypes import CODES
from taskmerge.checkpoint.provenance import metadata
from taskmerge.checkpoint.writer import stage
from taskmerge.errors import BadNumber


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, object], *, overwrite: bool = False
) -> None:
    """Writes tensors, wherever they are, with `record` as what the file says of itself.

    The same values give the same bytes, and the file is the old one or the new one, whole. Raises BadNumber for NaN or
    infinity, BadOutput where the file exists (without `overwrite`) or cannot be written.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            hint = "the numbers grew too large: try smaller learning rates"
            raise BadNumber("holds NaN or infinity and is not written", where=f"{path}: `{name}`", hint=hint)
    said = metadata(record)
    specs = [OutputSpec(name, CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in kept.items()]
    with stage(path, specs, overwrite=overwrite, reserve=len(json.dumps(said))) as sink:
        for name, tensor in kept.items():
            sink.write(name, tensor)
        sink.commit(said)
