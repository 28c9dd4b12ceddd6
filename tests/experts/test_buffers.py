"""Integer tensors of several experts: one value, or the right way out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.errors import Mismatch

NAME = "layers.0.fc"


def experts(folder: Path, name: str, *values: Tensor) -> list[Path]:
    paths = [folder / f"{task}.safetensors" for task in "ab"[: len(values)]]
    for path, value in zip(paths, values, strict=True):
        save_file({name: value, "w": torch.ones(4)}, path)
    return paths


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "first"),
    [
        ("position_ids", torch.int64, (1, 8), True),
        ("step", torch.int32, (), True),
        (f"{NAME}.packed", torch.int32, (4, 8), False),
        (f"{NAME}.codes", torch.uint8, (2, 4, 8), False),
        (f"{NAME}.weight", torch.int64, (8,), False),
    ],
)
def test_the_first_experts_value_is_never_the_way_out_for_codes(
    tmp_path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...], first: bool
) -> None:
    paths = experts(tmp_path, name, torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype))
    with pytest.raises(Mismatch, match=name) as raised:
        taskmerge.merge(paths, method="average", output=tmp_path / "m.safetensors")
    assert ("--on-buffer first" in str(raised.value)) is first
    assert ("quantised" in str(raised.value)) is not first
    assert not (tmp_path / "m.safetensors").exists()


def test_equal_values_stay_and_counters_take_the_largest(tmp_path: Path) -> None:
    name = "bn.num_batches_tracked"
    paths = experts(tmp_path, name, torch.tensor(3), torch.tensor(7))
    taskmerge.merge(paths, method="average", output=tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors")[name] == 7


COUNTS = {"uint8": 8, "int8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64}


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(sorted(COUNTS)), size=st.integers(0, 3))
def test_counters_of_every_integer_type_take_the_largest(
    tmp_path: Path, data: st.DataObject, dtype: str, size: int
) -> None:
    bits, signed = COUNTS[dtype], not dtype.startswith("u")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    count = st.lists(st.integers(low, high) | st.sampled_from([low, high]), min_size=size, max_size=size)
    rows = [data.draw(count) for _ in range(2)]
    values = [torch.from_numpy(np.array(row, dtype)) for row in rows]
    paths = experts(tmp_path, "bn.num_batches_tracked", *values)
    taskmerge.merge(paths, method="average", output=tmp_path / "m.safetensors", overwrite=True)
    merged = load_file(tmp_path / "m.safetensors")["bn.num_batches_tracked"]
    assert str(merged.dtype) == f"torch.{dtype}"
    assert merged.numpy().tolist() == [max(pair) for pair in zip(*rows, strict=True)]


@pytest.mark.parametrize("dtype", [*COUNTS, "bool", "complex64"])
def test_other_integers_that_differ_are_named(tmp_path: Path, dtype: str) -> None:
    values = [torch.from_numpy(np.array([number], dtype)) for number in (0, 1)]
    paths = experts(tmp_path, "steps", *values)
    with pytest.raises(Mismatch, match="`steps`: the integer tensor differs"):
        taskmerge.merge(paths, method="average", output=tmp_path / "m.safetensors")
