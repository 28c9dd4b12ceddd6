"""The canonical form of a written file: order of tensors, offsets, header text, and how tensors fall into shards."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from taskmerge.checkpoint.dtypes import LAYOUT_ORDER, itemsize
from taskmerge.checkpoint.header import LENGTH_BYTES, MAX_HEADER, METADATA_KEY
from taskmerge.errors import BadOutput

ALIGNMENT = 8
quoted = json.JSONEncoder(ensure_ascii=False).encode
"""A text as JSON."""


@dataclass(frozen=True)
class OutputSpec:
    """One tensor to be written; `dtype` is the safetensors code."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class FilePlan:
    """One file's tensors in canonical order, where the data of each begins, and the file's size.

    `header_size` depends on the tensors and the reserve alone, so data can be written before the metadata is known.
    """

    specs: tuple[OutputSpec, ...]
    starts: Mapping[str, int]
    header_size: int
    size: int


def plan_file(specs: Sequence[OutputSpec], reserve: int) -> FilePlan:
    """Lay one file out: widest dtype first, then by name, without holes; `reserve` bytes are kept for metadata.

    Raises BadOutput when the header would be larger than the format allows.
    """
    ordered = tuple(sorted(specs, key=lambda spec: (LAYOUT_ORDER[spec.dtype], spec.name)))
    header_size = _round_up(len(_header_text(ordered, {})) + reserve)
    if header_size > MAX_HEADER:
        raise BadOutput(f"the header needs {header_size} bytes, the format allows {MAX_HEADER}", hint="write shards")
    starts: dict[str, int] = {}
    offset = LENGTH_BYTES + header_size
    for spec in ordered:
        starts[spec.name] = offset
        offset += spec.nbytes
    return FilePlan(ordered, starts, header_size, offset)


def header_bytes(plan: FilePlan, metadata: Mapping[str, str]) -> bytes:
    """Length and header of the file: metadata first with sorted keys, compact JSON, spaces up to `header_size`.

    Raises BadOutput when the metadata is larger than what was reserved for it.
    """
    text = _header_text(plan.specs, metadata)
    if len(text) > plan.header_size:
        what = f"the header needs {len(text)} bytes and {plan.header_size} are reserved"
        raise BadOutput(what, hint="reserve more for the metadata")
    return plan.header_size.to_bytes(LENGTH_BYTES, "little") + text.ljust(plan.header_size)


def split_into_shards(specs: Sequence[OutputSpec], limit: int | None) -> list[list[OutputSpec]]:
    """Fill shards in the given order, each up to `limit` bytes of data, as huggingface_hub does.

    A tensor above the limit has a shard of its own, and the shard being filled goes on after it.
    """
    if limit is None:
        return [list(specs)]
    shards: list[list[OutputSpec]] = []
    current: list[OutputSpec] = []
    filled = 0
    for spec in specs:
        if spec.nbytes > limit:
            shards.append([spec])
            continue
        if filled + spec.nbytes > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(spec)
        filled += spec.nbytes
    return [*shards, current] if current or not shards else shards


def index_bytes(files: Mapping[str, Sequence[OutputSpec]]) -> bytes:
    """The index of a sharded checkpoint: `total_size` in bytes, and the file of every tensor."""
    weight_map = {spec.name: file for file, specs in files.items() for spec in specs}
    total = sum(spec.nbytes for specs in files.values() for spec in specs)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _header_text(specs: Sequence[OutputSpec], metadata: Mapping[str, str]) -> bytes:
    about = json.dumps(dict(sorted(metadata.items())), ensure_ascii=False, separators=(",", ":"))
    entries, offset = [f'"{METADATA_KEY}":{about}'], 0
    for spec in specs:
        sides, end = ",".join(map(str, spec.shape)), offset + spec.nbytes
        fields = f'"dtype":"{spec.dtype}","shape":[{sides}],"data_offsets":[{offset},{end}]'
        entries.append(f"{quoted(spec.name)}:{{{fields}}}")
        offset = end
    return f"{{{','.join(entries)}}}".encode()


def _round_up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
