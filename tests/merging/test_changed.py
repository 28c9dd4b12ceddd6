"""Inputs that are rewritten in place while they are merged: never a mixture, always exit 3 and nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import BadFile


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base and two experts as model folders."""
    generator = torch.Generator().manual_seed(5)
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        state = {f"h.{layer}.fc.weight": torch.randn(64, 64, generator=generator) for layer in range(6)}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"a": 1}')
    return tmp_path


def rewritten(path: Path) -> None:
    """Other bytes in the same file, of the same size and, as far as that can be set, of the same time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def at_step(number: int, act: Callable[[], None]) -> Callable[[int, int], None]:
    """A progress that acts once so much was merged."""
    calls = 0

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act()

    return progress


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize("target", ["a/model.safetensors", "base/model.safetensors", "base/config.json"])
@pytest.mark.parametrize("digests", [True, False])
def test_a_merge_of_two_versions_is_never_written(models: Path, step: int, target: str, digests: bool) -> None:
    """Whatever the moment, to the last tensor; without digests too."""
    with pytest.raises(BadFile, match="changed while it was being read") as raised:
        taskmerge.merge(
            [models / "a", models / "b"], base=models / "base", method="task_arithmetic", output=models / "out",
            progress=at_step(step, lambda: rewritten(models / target)), digests=digests,
        )  # fmt: skip
    assert str(models / target) in str(raised.value)
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "base"]


def test_an_output_that_was_there_stays(models: Path) -> None:
    output = models / "out.safetensors"
    taskmerge.merge([models / "a", models / "b"], method="average", output=output)
    before = output.read_bytes()
    with pytest.raises(BadFile):
        taskmerge.merge(
            [models / "a", models / "b"], method="average", output=output, overwrite=True,
            progress=at_step(2, lambda: rewritten(models / "b/model.safetensors")),
        )  # fmt: skip
    assert output.read_bytes() == before


def test_vectors_are_of_one_version(models: Path) -> None:
    with pytest.raises(BadFile, match="changed while it was being read"):
        taskmerge.vectors(
            [models / "a"], base=models / "base", output=models / "v",
            progress=at_step(2, lambda: rewritten(models / "a/model.safetensors")),
        )  # fmt: skip
    assert not (models / "v").exists()


def test_replaced_by_rename_is_read_on_as_it_was(models: Path) -> None:
    """The new file has another identity; the open one is whole."""
    wanted = taskmerge.merge([models / "a", models / "b"], method="average", output=models / "wanted.safetensors")

    def replace() -> None:
        other = {name: value + 1 for name, value in load_file(models / "a/model.safetensors").items()}
        save_file(other, models / "a/new")
        os.replace(models / "a/new", models / "a/model.safetensors")

    receipt = taskmerge.merge(
        [models / "a", models / "b"], method="average", output=models / "out.safetensors", progress=at_step(2, replace),
    )  # fmt: skip
    found, expected = load_file(receipt.paths[0]), load_file(wanted.paths[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
