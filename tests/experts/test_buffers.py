"""Integer tensors of several experts: one value, or the right way out."""

from pathlib import Path

import pytest
import torch
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
