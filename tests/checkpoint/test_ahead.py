"""Digests taken ahead, in another process: the same as those taken while reading, or none."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from taskmerge.checkpoint import ahead
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.experts.sources import CheckpointSource, Tally
from taskmerge.merging.look import _known_digests


def written(path: Path) -> dict[str, torch.Tensor]:
    tensors = {"a": torch.arange(12.0).view(3, 4), "b": torch.tensor(2, dtype=torch.int8), "empty": torch.zeros(0, 3)}
    save_file(tensors, path)
    return tensors


def all_of(files: list[Path]) -> dict[ahead.Stamp, dict[str, str]]:
    """What the other process finds when it is given its time."""
    with ahead.Ahead(files) as running:
        for _ in range(500):
            if running._process is None or running._process.poll() is not None:
                break
            time.sleep(0.02)
        return {key: dict(value) for key, value in running.take().items()}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: nothing is digested ahead")
def test_every_digest_is_that_of_the_tensors_bytes(tmp_path: Path) -> None:
    tensors = written(tmp_path / "x.safetensors")
    (found,) = all_of([tmp_path / "x.safetensors"]).values()
    assert found == {name: hashlib.sha256(one.numpy().tobytes()).hexdigest() for name, one in tensors.items()}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: nothing is digested ahead")
def test_a_digest_of_another_version_of_the_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    written(path)
    found = all_of([path])
    with open_checkpoint(path) as checkpoint:
        assert _known_digests(CheckpointSource("x", checkpoint), found).keys() == {"a", "b", "empty"}
    save_file({"a": torch.ones(3, 4)}, path)
    with open_checkpoint(path) as checkpoint:
        assert _known_digests(CheckpointSource("x", checkpoint), found) == {}


def test_a_tally_with_known_digests_is_the_tally_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = written(path)
    known = {"a": hashlib.sha256(tensors["a"].numpy().tobytes()).hexdigest()}
    digests = []
    with open_checkpoint(path) as checkpoint:
        for tally in (Tally(), Tally(known), Tally({**known, "never read": "00"})):
            for name in checkpoint.specs:
                tally.update(name, checkpoint.tensor(name).reshape(-1).view(torch.uint8))
            digests.append(tally.finish(checkpoint.specs))
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{broken}", b"\xff" * 64])
def test_a_damaged_file_leaves_no_digest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert all_of([path]) == {}


def test_the_words_of_a_command_line_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("x.safetensors"))
    Path("folder").mkdir()
    written(Path("folder/model.safetensors"))
    words = ["x.safetensors", "y=x.safetensors", "folder", "cart", "none.safetensors", "--rank", "0.08", ""]
    assert ahead.files_among(words) == [Path("x.safetensors"), Path("folder/model.safetensors")]


def test_it_imports_the_standard_library_alone() -> None:
    script = "import sys; before = set(sys.modules); import taskmerge.checkpoint.ahead; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    bare = subprocess.run([sys.executable, "-I", "-S", ahead.__file__], capture_output=True, text=True, check=True)
    assert bare.stdout == ""


def test_lines_that_were_cut_are_left_out(tmp_path: Path) -> None:
    with ahead.Ahead([]) as running:
        running._lines.write(b'[1, 2, 3, 4, 5]\n["a", "00"]\n[1, 2, 3, 4, 6]\n["a", "01"]\n["b", "1')
        assert running.take() == {(1, 2, 3, 4, 5): {"a": "00"}, (1, 2, 3, 4, 6): {"a": "01"}}
