"""Zip archives of torch.save as other tools rewrite them: read right, or refused by name, never mapped as they lie."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile

# Numbers that hardly shrink: what is deflated reaches beyond the tensor's size, and mapping it would not fail.
STATE = {
    "a": torch.randn(300, 40, generator=torch.Generator().manual_seed(0)),
    "b": torch.arange(12, dtype=torch.int64).view(3, 4),
    "half": torch.ones(5, 5, dtype=torch.bfloat16),
}


def saved(path: Path) -> Path:
    torch.save(STATE, path)
    return path


def rezipped(path: Path, method: int, *, zip64: bool = False, which: Callable[[str], bool] = lambda name: True) -> Path:
    """The archive written anew, its entries (those that `which` chooses) by another method."""
    new = path.with_name(f"new-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
        for entry in old.infolist():
            info = zipfile.ZipInfo(entry.filename)
            info.compress_type = method if which(entry.filename) else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=zip64) as file:
                file.write(old.read(entry))
    return new


def assert_reads(path: Path) -> None:
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        assert checkpoint.specs.keys() == STATE.keys()
        for name, tensor in STATE.items():
            assert torch.equal(checkpoint.tensor(name), tensor), name


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_whatever_torch_reads_is_read_right(tmp_path: Path, method: int, zip64: bool) -> None:
    assert_reads(rezipped(saved(tmp_path / "x.bin"), method, zip64=zip64))


@pytest.mark.parametrize("part", ["data/0", "data/2", "data.pkl"])
def test_one_deflated_entry_among_plain_ones(tmp_path: Path, part: str) -> None:
    assert_reads(rezipped(saved(tmp_path / "x.bin"), zipfile.ZIP_DEFLATED, which=lambda name: name.endswith(part)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    path = rezipped(saved(tmp_path / "x.bin"), method)
    with pytest.raises(BadFile, match="compressed in a way that torch cannot read") as caught:
        open_checkpoint(path, allow_pickle=True)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("left", [4, 1000, -30, -1])
def test_a_cut_archive(tmp_path: Path, left: int) -> None:
    path = saved(tmp_path / "x.bin")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BadFile, match="is a damaged zip archive") as caught:
        open_checkpoint(path, allow_pickle=True)
    assert str(path) in caught.value.message
