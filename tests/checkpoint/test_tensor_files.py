"""Files of a few tensors: canonical bytes, whole or not at all."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.errors import BadNumber, BadOutput

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(3),
    "bits": torch.tensor([1, 2], dtype=torch.uint8), "turned": torch.arange(6.0).reshape(2, 3).T,
}  # fmt: skip
RECORD = {"kind": "head", "activation": 'ta"nh', "name": "Ä"}


def test_tensors_and_record_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "x.safetensors", TENSORS, RECORD)
    found = load_file(tmp_path / "new" / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with open_checkpoint(tmp_path / "new" / "x.safetensors") as file:
        assert provenance_of(file) == RECORD


def test_the_order_of_tensors_changes_no_byte(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one.safetensors", TENSORS, RECORD)
    write_tensors(tmp_path / "two.safetensors", dict(reversed(TENSORS.items())), dict(reversed(RECORD.items())))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_an_existing_file_stays_or_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.zeros(2)}, RECORD)
    old = file.read_bytes()
    with pytest.raises(BadOutput, match="exists already"):
        write_tensors(file, TENSORS, RECORD)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_tensors(file, TENSORS, RECORD, overwrite=True)
    assert file.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    write_tensors(file, TENSORS, RECORD, overwrite=True)
    assert load_file(file).keys() == TENSORS.keys()


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]).half()])
def test_bad_numbers_are_not_written(tmp_path: Path, bad: Tensor) -> None:
    with pytest.raises(BadNumber, match="`weight`: holds NaN or infinity") as caught:
        write_tensors(tmp_path / "x.safetensors", {"weight": bad}, RECORD)
    assert caught.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_need_a_gradient_are_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"weight": torch.ones(2, requires_grad=True)}, {"kind": "head"})
    assert load_file(tmp_path / "x.safetensors")["weight"].tolist() == [1, 1]
