"""Opening files, indexes, folders and pickles, and reading tensors from them piece by piece and from threads."""

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import entry, random_tensor, raw_bytes, save, save_sharded, tensor_maps, write_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.checkpoint import checkpoint as module
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.weights import default_name
from taskmerge.errors import BadFile

TENSORS = {name: random_tensor("F32", (3, 4), seed) for seed, name in enumerate("abcd")}
SHARDS = {
    "model-00001-of-00002.safetensors": {name: TENSORS[name] for name in "ac"},
    "model-00002-of-00002.safetensors": {name: TENSORS[name] for name in "bd"},
}

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_holds(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert list(checkpoint.specs) == sorted(tensors)
    for name, tensor in tensors.items():
        read = checkpoint.tensor(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(read) == raw_bytes(tensor)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BadFile) as caught:
        open_checkpoint(path, **options)
    assert caught.value.hint
    return caught.value.message


@few
@given(tensors=tensor_maps)
def test_tensors_of_every_dtype_and_shape_come_back(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = save(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, tensors)
        assert (checkpoint.path, checkpoint.folder, checkpoint.files) == (path, None, (path,))
        assert checkpoint.metadata == {"format": "pt"}
        assert (checkpoint.warnings == ()) == (checkpoint.quantised is None)  # E8M0 is the type of scales
        assert checkpoint.tied == {}


@few
@given(cuts=st.lists(st.integers(0, 48), max_size=4))
def test_read_into_fills_any_range(tmp_path: Path, cuts: list[int]) -> None:
    path = save(tmp_path / "x.safetensors", TENSORS)
    edges = sorted({0, 48, *cuts})
    whole = torch.empty(48, dtype=torch.uint8)
    with open_checkpoint(path) as checkpoint:
        for start, end in itertools.pairwise(edges):
            checkpoint.read_into("c", whole[start:end], start)
    assert bytes(whole.untyped_storage()) == raw_bytes(TENSORS["c"])


def test_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "x.safetensors", TENSORS)) as checkpoint:
        checkpoint.tensor("a").zero_()
        assert_holds(checkpoint, TENSORS)


def test_short_reads_are_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: whole(fd, [buffers[0][:5]], offset))
    with open_checkpoint(save(tmp_path / "x.safetensors", TENSORS)) as checkpoint:
        assert_holds(checkpoint, TENSORS)


def test_many_threads_read_one_checkpoint(tmp_path: Path) -> None:
    tensors = {f"t{seed}": random_tensor("F16", (64, 33), seed) for seed in range(40)}
    halves = [dict(list(tensors.items())[:20]), dict(list(tensors.items())[20:])]
    index = save_sharded(tmp_path, {"a.safetensors": halves[0], "b.safetensors": halves[1]})
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(index) as checkpoint, ThreadPoolExecutor(8) as pool:
        for name, read in zip(tensors, pool.map(checkpoint.tensor, tensors), strict=True):
            assert torch.equal(read.view(torch.uint8), tensors[name].view(torch.uint8))
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_open_before_the_first_read_or_inherited(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(save(tmp_path / "x.safetensors", TENSORS)) as checkpoint:
        assert len(os.listdir("/proc/self/fd")) == before
        checkpoint.tensor("a")
        opened = [int(link.name) for link in Path("/proc/self/fd").iterdir() if link.resolve() == checkpoint.path]
        assert len(opened) == 1
        assert not os.get_inheritable(opened[0])


def test_wrong_buffers_are_refused(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "x.safetensors", TENSORS)) as checkpoint:
        for buffer, start in [
            (torch.empty(4), 0),
            (torch.empty(2, 2, dtype=torch.uint8), 0),
            (torch.empty(8, dtype=torch.uint8)[::2], 0),
            (torch.empty(49, dtype=torch.uint8), 0),
            (torch.empty(8, dtype=torch.uint8), 41),
            (torch.empty(8, dtype=torch.uint8), -1),
        ]:
            with pytest.raises(ValueError, match=r"buffer|bytes"):
                checkpoint.read_into("a", buffer, start)
        with pytest.raises(KeyError):
            checkpoint.tensor("absent")


def test_a_closed_checkpoint_reads_no_more(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "x.safetensors", TENSORS))
    checkpoint.tensor("a")
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor("a")


def test_a_file_that_is_replaced_or_cut_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", TENSORS)
    replaced = open_checkpoint(path)
    save(tmp_path / "y.safetensors", TENSORS).rename(path)
    with pytest.raises(BadFile, match="changed while it was being read"):
        replaced.tensor("a")
    replaced.close()

    with open_checkpoint(path) as cut:
        cut.tensor("a")
        os.truncate(path, path.stat().st_size - 20)
        with pytest.raises(BadFile, match=r"x\.safetensors: `d`: the file ends inside the tensor"):
            cut.tensor("d")


def test_a_failing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_checkpoint(save(tmp_path / "x.safetensors", TENSORS)) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(BadFile, match="`a`: cannot be read: Input/output error"):
            checkpoint.tensor("a")


# Folders and indexes


@pytest.mark.parametrize("given_as", ["folder", "index"])
def test_sharded_checkpoints(tmp_path: Path, given_as: str) -> None:
    index = save_sharded(tmp_path, SHARDS)
    path = tmp_path if given_as == "folder" else index
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, TENSORS)
        assert checkpoint.folder == tmp_path
        assert checkpoint.files == tuple(tmp_path / name for name in sorted(SHARDS))
        assert checkpoint.warnings == ()


def test_sharding_leaves_the_digest_alone(tmp_path: Path) -> None:
    index = save_sharded(tmp_path / "sharded", SHARDS)
    whole = save(tmp_path / "whole.safetensors", TENSORS)
    with open_checkpoint(index) as sharded, open_checkpoint(whole) as single:
        assert digest_of(sharded) == digest_of(single)


def test_a_stray_shard_is_left_out_with_a_warning(tmp_path: Path) -> None:
    save_sharded(tmp_path, SHARDS)
    save(tmp_path / "model-00003-of-00003.safetensors", {"stray": TENSORS["a"]})
    save(tmp_path / ".model.safetensors.tmp-0123.safetensors", TENSORS)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_holds(checkpoint, TENSORS)
        (warning,) = checkpoint.warnings
    assert "model-00003-of-00003.safetensors" in warning
    assert ".model" not in warning.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"e": "model-00001-of-00002.safetensors"}, "`e` is not in model-00001-of-00002.safetensors"),
        ({"a": None}, "`a` of model-00001-of-00002.safetensors is not in the index"),
        ({"a": "model-00002-of-00002.safetensors"}, "`a` is in model-00001-of-00002.safetensors, not in model-00002"),
        ({"b": "absent.safetensors"}, "1 of 3 shards that do not exist: absent.safetensors"),
        ({"b": "../b.safetensors"}, "`b`: shard '../b.safetensors' is not a file inside"),
        ({"b": "x/../../b.safetensors"}, "is not a file inside the index's folder"),
        ({"b": "/etc/passwd"}, "is not a file inside the index's folder"),
        ({"b": ""}, "is not a file inside the index's folder"),
        ({"b": "."}, "is not a file inside the index's folder"),
        ({"b": "b\0.safetensors"}, "is not a file inside the index's folder"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict[str, str | None], words: str) -> None:
    index = save_sharded(tmp_path / "model", SHARDS, **changes)
    save(tmp_path / "b.safetensors", {"b": TENSORS["b"]})
    for path in (index, index.parent):
        message = refusal(path)
        assert words in message
        assert str(index) in message


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = {name: tensors | {"b": TENSORS["b"]} for name, tensors in SHARDS.items()}
    message = refusal(save_sharded(tmp_path, shards))
    assert "`b` is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors" in message
    assert message.count("`b`") == 1


def test_many_disagreements_are_one_short_message(tmp_path: Path) -> None:
    message = refusal(save_sharded(tmp_path, SHARDS, **{f"t{i}": next(iter(SHARDS)) for i in range(500)}))
    assert "and 495 more" in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "content",
    ["", "not json", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 200_000],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in refusal(index)


def test_missing_index(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "model.safetensors.index.json")


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    index = save_sharded(tmp_path, SHARDS)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert "model-00002-of-00002.safetensors: `d`: data end at byte" in refusal(index)


def test_shards_may_be_links_out_of_the_folder_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    index = save_sharded(tmp_path / "snapshot", SHARDS)
    (tmp_path / "blobs").mkdir()
    for number, name in enumerate(SHARDS):
        (tmp_path / "snapshot" / name).rename(tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{number}")
    with open_checkpoint(index) as checkpoint:
        assert_holds(checkpoint, TENSORS)


def test_the_usual_file_of_a_folder_is_preferred(tmp_path: Path) -> None:
    order = ["any.safetensors", "open_clip_model.safetensors", "model.safetensors"]
    for number, name in enumerate(order):
        save(tmp_path / name, {f"t{number}": TENSORS["a"]})
        with open_checkpoint(tmp_path) as checkpoint:
            assert list(checkpoint.specs) == [f"t{number}"]
            assert checkpoint.files == (tmp_path / name,)
            assert checkpoint.folder == tmp_path
            assert len(checkpoint.warnings) == (number > 0)
    torch.save({"z": TENSORS["a"]}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.specs) == ["t2"]


def test_paths_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "no such file" in refusal(tmp_path / "absent")
    save(tmp_path / "file", TENSORS)
    assert "Not a directory" in refusal(tmp_path / "file" / "x.safetensors")

    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert f"{tmp_path}: cannot be listed: Permission denied" in refusal(tmp_path)


def test_an_index_of_any_name_joins_the_shards_of_a_folder(tmp_path: Path) -> None:
    save_sharded(tmp_path, SHARDS).rename(tmp_path / "merged.safetensors.index.json")
    with open_checkpoint(tmp_path) as checkpoint:
        assert_holds(checkpoint, TENSORS)


def test_folders_that_do_not_say_which_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = refusal(tmp_path)
    assert "folder without weights" in message
    assert "model.safetensors" in message
    save(tmp_path / "model-00001-of-00002.safetensors", TENSORS)
    assert "is one of 2 shards, and the folder has no index" in refusal(tmp_path)
    save(tmp_path / "other.safetensors", TENSORS)
    assert "holds 2 weight files and no index" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mnist.safetensors", "mnist"),
        ("vit.b32.safetensors", "vit.b32"),
        ("runs/sst2/model.safetensors", "sst2"),
        ("runs/sst2/model.safetensors.index.json", "sst2"),
        ("runs/sst2/open_clip_model.safetensors", "sst2"),
        ("runs/sst2/pytorch_model.bin", "sst2"),
        ("runs/sst2/merged.safetensors.index.json", "merged"),
        ("runs/sst2/expert.bin.index.json", "expert"),
        ("runs/expert.pt", "expert"),
        ("runs/sst2", "sst2"),
        ("runs/sst2/.", "sst2"),
        ("runs/other/../sst2", "sst2"),
        (".", "here"),
        ("model.safetensors", "here"),
    ],
)
def test_default_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str) -> None:
    (tmp_path / "here/runs/sst2").mkdir(parents=True)
    (tmp_path / "here/runs/other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_name(Path(path)) == name
    assert default_name(Path("/")) == "model"


# Pickles


class Opens:
    """Something that a pickle must not be able to call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a pickle ran",))


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.ckpt"])
def test_pickles_need_permission(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(TENSORS, path)
    message = refusal(path)
    assert "--allow-pickle" in message
    assert "safetensors" in message
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        assert_holds(checkpoint, TENSORS)
        assert (checkpoint.files, checkpoint.metadata) == ((path,), {})


IN_OLD_FORMAT = {DTYPES[code] for code in ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")}


@few
@given(tensors=tensor_maps, legacy=st.booleans(), wrapped=st.booleans())
def test_pickled_state_dicts_of_every_dtype(
    tmp_path: Path, tensors: dict[str, Tensor], legacy: bool, wrapped: bool
) -> None:
    path = tmp_path / "x.pt"
    content = {"state_dict": tensors, "epoch": 3} if wrapped else tensors
    legacy = legacy and all(tensor.dtype in IN_OLD_FORMAT for tensor in tensors.values())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(path, allow_pickle=True) as checkpoint:
        assert_holds(checkpoint, tensors)
        assert checkpoint.tied == {}


def test_a_pickle_reads_in_pieces(tmp_path: Path) -> None:
    torch.save({"a": TENSORS["a"].T, "p": torch.nn.Parameter(TENSORS["b"])}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        assert_holds(checkpoint, {"a": TENSORS["a"].T.contiguous(), "p": TENSORS["b"]})
        part = torch.empty(7, dtype=torch.uint8)
        checkpoint.read_into("a", part, 5)
        assert bytes(part.untyped_storage()) == raw_bytes(TENSORS["a"].T.contiguous())[5:12]
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor("a")


def test_tied_tensors_of_a_pickle_are_reported(tmp_path: Path) -> None:
    table = TENSORS["a"]
    views = {"upper": table[:2], "lower": table[1:], "square": table[:, :3], "turned": table[:, :3].T}
    state = {"wte": table, "lm_head": table, "third": table.view(3, 4), **views}
    torch.save(state, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt", allow_pickle=True) as checkpoint:
        assert checkpoint.tied == {"third": "lm_head", "wte": "lm_head"}
        assert_holds(checkpoint, {name: tensor.contiguous().clone() for name, tensor in state.items()})


def test_pickled_shards(tmp_path: Path) -> None:
    files = {"pytorch_model-00001-of-00002.bin": "ac", "pytorch_model-00002-of-00002.bin": "bd"}
    for file, names in files.items():
        torch.save({name: TENSORS[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "--allow-pickle" in refusal(tmp_path)
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert_holds(checkpoint, TENSORS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": TENSORS["a"], "epoch": 3}, "`epoch`: is a int, not a tensor"),
        ({"a": TENSORS["a"], "optimizer": {"lr": 1}}, "`optimizer`: is a dict, not a tensor"),
        ({3: TENSORS["a"]}, "the key 3 is not text"),
        ({"a": TENSORS["a"].to(torch.complex128)}, "`a`: has dtype torch.complex128"),
        ({"a": TENSORS["a"].to_sparse()}, "`a`: is a sparse"),
        ([TENSORS["a"]], "holds a list, not a state dict"),
        ({"a": Opens()}, "cannot be loaded weights-only"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_pickles_that_are_no_state_dict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, words: str
) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    message = refusal(path, allow_pickle=True)
    assert words in message
    assert str(path) in message
    assert "code from a pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK", b"just text", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert str(path) in refusal(path, allow_pickle=True)


def test_a_missing_pickle(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "x.pt", allow_pickle=True)
    assert "no such file" in refusal(tmp_path / "x.pt")


def test_reading_closes_no_file_under_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for the read under way: its descriptor's number could be another file's otherwise."""
    checkpoint = open_checkpoint(write_raw(tmp_path / "x.safetensors", {"a": entry("U8", [4], 0, 4)}, b"abcd"))
    whole = os.preadv
    with ThreadPoolExecutor(1) as pool:

        def slow(number: int, buffers: list[memoryview], offset: int) -> int:
            closing = pool.submit(checkpoint.close)
            with pytest.raises(TimeoutError):
                closing.result(timeout=0.1)
            return whole(number, buffers, offset)

        monkeypatch.setattr(module.os, "preadv", slow)
        assert bytes(checkpoint.tensor("a").untyped_storage()) == b"abcd"
