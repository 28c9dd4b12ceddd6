"""Zip archives of torch.save as other tools rewrite them: read right, or refused by name, never mapped as they lie."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taskmerge import documents
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


def test_expanded_views_are_refused_before_they_are_laid_out(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for view in (
        torch.zeros(1).expand(2**30),
        torch.zeros(8, 1).expand(8, 2**40),
        torch.zeros(4, 4).as_strided((2**20, 2**20), (0, 0)),
    ):
        torch.save({"small": torch.ones(2), "w": view}, path)
        with pytest.raises(BadFile, match=r"x\.bin: `w` would take .* GB: views"):
            open_checkpoint(path, allow_pickle=True)
    torch.save({f"w{n}": torch.zeros(1 << 20).expand(8, 1 << 20) for n in range(100)}, path)
    with pytest.raises(BadFile, match=r"would take 3\.36 GB"):
        open_checkpoint(path, allow_pickle=True)
    few = {"w": torch.arange(3.0).expand(4, 3), "t": torch.randn(300, 200).T}
    torch.save(few, path)
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in few.items())


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(300 << 20, dtype=torch.uint8)}, tmp_path / "x.bin")
    path = rezipped(tmp_path / "x.bin", zipfile.ZIP_DEFLATED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "EXPANDED", 64 << 20)
        with pytest.raises(BadFile, match=r"expands to more than 0\.0625 GiB"):
            open_checkpoint(path, allow_pickle=True)


def test_a_file_cut_while_it_is_read_does_not_kill_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"w": torch.ones(4 << 20)}, path)
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        os.truncate(path, 1 << 20)
        with pytest.raises(BadFile, match="changed while it was being read"):
            checkpoint.tensor("w")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.bin")
    with pytest.raises(BadFile, match=r"x\.bin"):
        open_checkpoint(tmp_path / "x.bin", allow_pickle=True)


def test_torchs_advice_is_never_passed_on(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is to go
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    recwarn.clear()
    save_file({"w": torch.zeros(4)}, tmp_path / "model.ckpt")
    torch.save({"w": torch.zeros(2), "f": print}, tmp_path / "print.bin")
    torch.save({"w": torch.zeros(2), "path": Path("x")}, tmp_path / "path.bin")
    (tmp_path / "text.pt").write_text("no pickle at all")
    (tmp_path / "cut.pt").write_bytes(b"\x80\x02}q\x00")
    for name in ("model.ckpt", "print.bin", "path.bin", "text.pt", "cut.pt", "script.pt"):
        with pytest.raises(BadFile, match=name) as caught:
            open_checkpoint(tmp_path / name, allow_pickle=True)
        assert not any(word in caught.value.message for word in ("weights_only", "default", "trust", "PyTorch"))
        assert name != "model.ckpt" or "name it .safetensors" in caught.value.message
        assert name != "script.pt" or "it is a TorchScript archive" in caught.value.message
    assert not list(recwarn)


def nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)


@pytest.mark.filterwarnings("ignore")  # nested tensors are a prototype
@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(torch.strided), pytest.param(lambda: nested(torch.jagged), marks=pytest.mark.slow),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"), lambda: torch.ones(1).reshape([1] * 65),
        lambda: torch.ones(1).reshape([1] * 17).expand([1] * 16 + [9]), lambda: torch.nn.ParameterList([torch.ones(1)]),
        lambda: {"inner": torch.ones(1)}, lambda: [torch.ones(1)], lambda: torch.Size([2]), lambda: 10**400,
        lambda: None,
    ],
)  # fmt: skip
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path: Path, make: Callable[[], object]) -> None:
    torch.save({"fine": torch.ones(2), "odd": make()}, tmp_path / "x.pt")
    with pytest.raises(BadFile, match=r"x\.pt"):
        open_checkpoint(tmp_path / "x.pt", allow_pickle=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 99), turns=st.sets(st.sampled_from("cni")))
def test_conjugates_and_negatives_that_are_only_marked_as_such_are_read_as_values(
    tmp_path: Path, shape: list[int], seed: int, turns: set[str]
) -> None:
    value = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    value = value.conj() if "c" in turns else value
    value = value.mT if "n" in turns and value.dim() > 1 else value
    value = value.imag if "i" in turns else value
    torch.save({"w": value, "same": value}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        assert torch.equal(checkpoint.tensor("w"), value.resolve_conj().resolve_neg())
