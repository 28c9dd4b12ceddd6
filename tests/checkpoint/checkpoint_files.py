"""Checkpoint files for tests: random tensors of every dtype, hand-made (also bad) files, sharded folders."""

import json
import os
import struct
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.checkpoint.dtypes import CODES, DTYPES


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    """A tensor's entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked process, which dies with it; returns its exit status, 1 for an exception."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file by hand: any JSON value or raw bytes as header, any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes in C order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor of random bytes (so also NaN and subnormals); bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    high = 2 if dtype == "BOOL" else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator)
    return data.view(DTYPES[dtype]).reshape(shape).clone()


def library_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The file that the safetensors library makes of these tensors."""
    # Without tensors, an empty map of metadata makes the library write broken JSON; None doesn't.
    return bytes(safetensors.torch.save(dict(tensors), metadata or None))


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Save tensors with the safetensors library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(library_bytes(tensors, metadata))
    return path


def save_sharded(folder: Path, shards: Mapping[str, Mapping[str, Tensor]], **changes: str | None) -> Path:
    """Save shards and their index; `changes` overrides (None: leaves out) entries of the weight map."""
    for file, tensors in shards.items():
        save(folder / file, tensors)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors} | changes
    weight_map = {name: file for name, file in weight_map.items() if file is not None}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=8).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensor_maps = st.dictionaries(
    names, st.builds(random_tensor, st.sampled_from(list(DTYPES)), shapes, st.integers(0, 999)), max_size=6
)


def code_of(tensor: Tensor) -> str:
    """The safetensors code of a tensor's dtype."""
    return CODES[tensor.dtype]
