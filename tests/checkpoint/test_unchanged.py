"""A file that is rewritten while it is read is noticed, whatever its size and its times say; a replaced one is not."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import library_bytes, save, save_sharded

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.identity import check_unchanged, file_id, file_ids, stamps_of
from taskmerge.errors import BadFile

OLD = {"a": torch.zeros(4), "b": torch.zeros(4)}
NEW = {name: torch.ones(4) for name in OLD}
TICK = 0.02  # seconds: more than the clock of the file system takes from one time to the next


def rewritten(path: Path, content: bytes | None = None) -> None:
    """Other bytes in the same file, of the same size, with the time of the last change set back."""
    before = path.stat()
    content = library_bytes(NEW) if content is None else content
    assert len(content) == before.st_size
    time.sleep(TICK)
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def assert_changed(checkpoint: Checkpoint, path: Path) -> None:
    with pytest.raises(BadFile, match="changed while it was being read") as caught:
        checkpoint.check_unchanged()
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 3


def touched(path: Path) -> None:
    time.sleep(TICK)
    path.touch()


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


CHANGES: dict[str, Callable[[Path], None]] = {"rewritten": rewritten, "touched": touched, "grown": grown}


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_in_place(tmp_path: Path, change: str, read: bool) -> None:
    path = save(tmp_path / "x.safetensors", OLD)
    with open_checkpoint(path) as checkpoint:
        if read:
            checkpoint.tensor("a")
        checkpoint.check_unchanged()
        CHANGES[change](path)
        assert_changed(checkpoint, path)


def test_what_changed_before_the_first_read_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", OLD)
    with open_checkpoint(path) as checkpoint:
        rewritten(path)
        with pytest.raises(BadFile, match="changed while it was being read"):
            checkpoint.tensor("a")


def test_the_version_is_taken_before_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.checkpoint import checkpoint as module

    path = save(tmp_path / "x.safetensors", OLD)
    whole = module.read_header

    def slow(file: Path) -> object:
        rewritten(file)
        return whole(file)

    monkeypatch.setattr(module, "read_header", slow)
    with open_checkpoint(path) as checkpoint:
        assert_changed(checkpoint, path)


@pytest.mark.parametrize("away", ["replaced", "removed"])
def test_an_open_file_that_loses_its_name_is_read_on_as_it_was(tmp_path: Path, away: str) -> None:
    path = save(tmp_path / "x.safetensors", OLD)
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensor("a")
        time.sleep(TICK)
        if away == "replaced":
            os.replace(save(tmp_path / "new.safetensors", NEW), path)
        else:
            path.unlink()
        assert torch.equal(checkpoint.tensor("b"), OLD["b"])
        checkpoint.check_unchanged()


def test_a_replaced_file_that_was_rewritten_before_has_changed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", OLD)
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensor("a")
        touched(path)
        os.replace(save(tmp_path / "new.safetensors", NEW), path)
        assert_changed(checkpoint, path)


@pytest.mark.parametrize("away", ["replaced", "removed"])
def test_a_file_that_was_not_opened_yet_must_be_the_same(tmp_path: Path, away: str) -> None:
    path = save(tmp_path / "x.safetensors", OLD)
    with open_checkpoint(path) as checkpoint:
        if away == "replaced":
            os.replace(save(tmp_path / "new.safetensors", OLD), path)
        else:
            path.unlink()
        assert_changed(checkpoint, path)


@pytest.mark.parametrize("file", ["one.safetensors", "two.safetensors", "model.safetensors.index.json"])
def test_any_shard_and_the_index(tmp_path: Path, file: str) -> None:
    save_sharded(tmp_path, {"one.safetensors": {"a": OLD["a"]}, "two.safetensors": {"b": OLD["b"]}})
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.tensor("a")
        checkpoint.check_unchanged()
        rewritten(tmp_path / file, (tmp_path / file).read_bytes())
        assert_changed(checkpoint, tmp_path / file)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(OLD, path, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        checkpoint.check_unchanged()
        rewritten(path, path.read_bytes())
        assert_changed(checkpoint, path)


def test_files_that_are_copied(tmp_path: Path) -> None:
    config, vocabulary, missing = (tmp_path / name for name in ("config.json", "vocab.txt", "merges.txt"))
    for path in (config, vocabulary):
        path.write_text("{}")
    stamps = stamps_of([config, vocabulary, missing])
    check_unchanged(stamps)
    rewritten(vocabulary, b"[]")
    with pytest.raises(BadFile, match=r"vocab\.txt: changed"):
        check_unchanged(stamps)
    stamps = stamps_of([config, missing])
    missing.write_text("")
    with pytest.raises(BadFile, match=r"merges\.txt: changed"):
        check_unchanged(stamps)
    config.unlink()
    with pytest.raises(BadFile, match=r"config\.json: changed"):
        check_unchanged(stamps)


def test_the_file_itself_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("x")
    (tmp_path / "soft").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "copy").write_text("x")
    assert file_id(tmp_path / "soft") == file_id(tmp_path / "hard") == file_id(path) != file_id(tmp_path / "copy")
    assert file_id(tmp_path / "none") is None
    assert file_id(tmp_path / "x/below") is None
    assert len(file_ids([path, tmp_path / "soft", tmp_path / "none", tmp_path])) == 2
