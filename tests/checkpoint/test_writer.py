"""Staged writing: the bytes of a committed file, shards and folders, and every way in which nothing is left behind."""

import errno
import itertools
import json
import os
import re
import resource
import stat
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import code_of, in_child, library_bytes, names, random_tensor, raw_bytes, tensor_maps
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.checkpoint import disk, publish, staging, writer
from taskmerge.checkpoint.canonical import OutputSpec, split_into_shards
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.writer import stage
from taskmerge.errors import BadFile, BadOutput

TENSORS = {
    "w": random_tensor("F32", (3, 4), 1),
    "h": random_tensor("F16", (5,), 2),
    "n": random_tensor("I64", (), 3),
    "e": random_tensor("BF16", (0, 4), 4),
}
META = {"format": "pt"}

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def specs_of(tensors: Mapping[str, Tensor]) -> list[OutputSpec]:
    return [OutputSpec(name, code_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()]


def write(
    path: Path, tensors: Mapping[str, Tensor] = TENSORS, metadata: Mapping[str, str] = META, **options: Any
) -> Path:
    with stage(path, specs_of(tensors), **options) as sink:
        for name, tensor in tensors.items():
            sink.write(name, tensor)
        sink.commit(metadata)
    return sink.path


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def stems_in(folder: Path) -> list[str]:
    """The names in a folder, without the generation that shards carry."""
    return sorted(re.sub(r"-g[0-9a-f]{8}-", "-", name) for name in everything_in(folder))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BadOutput) as caught:
        write(path, **options)
    assert caught.value.hint
    assert caught.value.exit_code == 6
    return caught.value.message


# The bytes of a file


@few
@given(tensors=tensor_maps)
def test_a_file_has_the_bytes_that_the_library_writes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    write(path, tensors, META, reserve=len('"format":"pt"'), overwrite=True)
    assert path.read_bytes() == library_bytes(tensors, META)


@few
@given(
    tensors=tensor_maps,
    metadata=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    reserve=st.integers(200, 5000),
)
def test_the_library_reads_padded_files(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], reserve: int
) -> None:
    path = tmp_path / "x.safetensors"
    needed = len(json.dumps(metadata).encode()) * 4
    write(path, tensors, metadata, reserve=reserve + needed, overwrite=True)
    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert raw_bytes(read) == raw_bytes(tensor)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == dict(sorted(metadata.items()))
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_order_of_tensors_keys_and_writes_leaves_the_bytes_alone(tmp_path: Path) -> None:
    metadata = {"format": "pt", "a": "1", "z": "2"}
    first = write(tmp_path / "1.safetensors", TENSORS, metadata).read_bytes()
    turned = dict(reversed(TENSORS.items()))
    second = write(tmp_path / "2.safetensors", turned, dict(reversed(metadata.items()))).read_bytes()
    assert first == second
    header = json.loads(first[8 : 8 + int.from_bytes(first[:8], "little")])
    assert list(header) == ["__metadata__", "n", "w", "e", "h"]
    assert list(header["__metadata__"]) == ["a", "format", "z"]


def test_the_place_of_the_data_does_not_depend_on_the_metadata(tmp_path: Path) -> None:
    little = write(tmp_path / "1.safetensors", TENSORS, {"format": "pt"}).read_bytes()
    much = write(tmp_path / "2.safetensors", TENSORS, {"format": "pt", "taskmerge": "x" * 3000}).read_bytes()
    assert len(little) == len(much)
    assert little[:8] == much[:8]


def test_metadata_beyond_the_reserve_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    message = refusal(tmp_path / "x.safetensors", metadata={"format": "p" * 200}, reserve=100)
    assert "reserved" in message
    assert everything_in(tmp_path) == []


@few
@given(cuts=st.lists(st.integers(0, 24), max_size=5), order=st.randoms(use_true_random=False))
def test_pieces_may_come_in_any_order_and_as_any_buffer(tmp_path: Path, cuts: list[int], order: Any) -> None:
    tensor = random_tensor("F16", (4, 6), 1)
    flat = tensor.reshape(-1)
    edges = sorted({0, 24, *cuts})
    pieces = list(itertools.pairwise(edges))
    order.shuffle(pieces)
    path = tmp_path / "x.safetensors"
    with stage(path, specs_of({"a": tensor}), overwrite=True) as sink:
        for number, (start, end) in enumerate(pieces):
            piece = flat[start:end]
            sink.write("a", [piece, raw_bytes(piece.clone()), memoryview(piece.numpy())][number % 3], start)
        sink.commit(META)
    assert raw_bytes(load_file(path)["a"]) == raw_bytes(tensor)


def test_threads_write_at_once(tmp_path: Path) -> None:
    tensors = {f"t{seed}": random_tensor("F32", (100, 30), seed) for seed in range(30)}
    path = tmp_path / "x.safetensors"
    with stage(path, specs_of(tensors), shard_size=50_000) as sink, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: sink.write(*item), tensors.items()))
        sink.commit(META)
    with open_checkpoint(sink.path) as checkpoint:
        for name, tensor in tensors.items():
            assert raw_bytes(checkpoint.tensor(name)) == raw_bytes(tensor)


def test_short_writes_are_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:7], offset))
    path = write(tmp_path / "x.safetensors")
    assert raw_bytes(load_file(path)["w"]) == raw_bytes(TENSORS["w"])


def test_wrong_data_is_refused(tmp_path: Path) -> None:
    with stage(tmp_path / "x.safetensors", specs_of(TENSORS)) as sink:
        for data, start in [
            (TENSORS["w"].double(), 0),
            (TENSORS["w"].T, 0),
            (TENSORS["w"].to("meta"), 0),
            (TENSORS["w"], 1),
            (TENSORS["w"], -1),
            (bytes(49), 0),
        ]:
            with pytest.raises(ValueError, match="`w`"):
                sink.write("w", data, start)
        with pytest.raises(KeyError):
            sink.write("absent", TENSORS["w"])
    for specs in ([OutputSpec("a", "F32", (1,))] * 2, [OutputSpec("__metadata__", "F32", (1,))]):
        with pytest.raises(ValueError, match="unique"), stage(tmp_path / "y.safetensors", specs):
            pass
    with pytest.raises(ValueError, match="F4"), stage(tmp_path / "y.safetensors", [OutputSpec("a", "F4", (2,))]):
        pass


def test_an_incomplete_tensor_is_never_committed(tmp_path: Path) -> None:
    for start, words in ((1, "n, w"), (0, "n")):
        with stage(tmp_path / "x.safetensors", specs_of(TENSORS)) as sink:
            sink.write("w", TENSORS["w"].reshape(-1)[start:], start)
            sink.write("h", TENSORS["h"])
            with pytest.raises(ValueError, match=f"exactly once: {words}$"):
                sink.commit(META)
    assert everything_in(tmp_path) == []


# Shards and folders


@few
@given(sizes=st.lists(st.integers(0, 9), max_size=12), limit=st.integers(1, 12))
def test_shards_are_those_of_huggingface_hub(sizes: list[int], limit: int) -> None:
    specs = [OutputSpec(f"t{number}", "U8", (size,)) for number, size in enumerate(sizes)]
    theirs = split_state_dict_into_shards_factory(
        {spec.name: spec for spec in specs},
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    expected = list(theirs.filename_to_tensors.values()) if sizes else [[]]
    assert [[spec.name for spec in shard] for shard in split_into_shards(specs, limit)] == expected


@pytest.mark.parametrize("as_folder", [True, False])
def test_shards_and_their_index(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "out" if as_folder else tmp_path / "out" / "merged.safetensors"
    opened = write(path, shard_size=48, folder=as_folder)
    stem = "model" if as_folder else "merged"
    index = tmp_path / "out" / f"{stem}.safetensors.index.json"
    shards = [f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"]
    assert stems_in(tmp_path / "out") == sorted([*shards, index.name])
    assert opened == (path if as_folder else index)
    document = json.loads(index.read_text())
    assert document["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    files = [name for name in everything_in(tmp_path / "out") if name != index.name]
    assert document["weight_map"] == {"w": files[0], "h": files[1], "n": files[1], "e": files[1]}
    for shard in files:
        with safe_open(index.parent / shard, "pt") as file:
            assert file.metadata() == META
    with open_checkpoint(opened) as checkpoint:
        assert list(checkpoint.specs) == sorted(TENSORS)
        assert all(raw_bytes(checkpoint.tensor(name)) == raw_bytes(tensor) for name, tensor in TENSORS.items())


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", shard_size=10_000)
    write(tmp_path / "new", shard_size=10_000, folder=True)
    assert everything_in(tmp_path) == ["new", "new/model.safetensors", "x.safetensors"]


def test_an_existing_folder_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert write(tmp_path) == tmp_path
    assert everything_in(tmp_path) == ["model.safetensors", "notes.txt"]


def test_sidecars_travel_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "vocab.txt"
    source.write_bytes(b"a\r\nb\xff")
    sidecars = {"vocab.txt": source, "README.md": b"# Card\n"}
    write(tmp_path / "out", folder=True, sidecars=sidecars)
    assert everything_in(tmp_path / "out") == ["README.md", "model.safetensors", "vocab.txt"]
    assert (tmp_path / "out/vocab.txt").read_bytes() == b"a\r\nb\xff"
    assert (tmp_path / "out/README.md").read_bytes() == b"# Card\n"
    with pytest.raises(ValueError, match="folder"):
        write(tmp_path / "x.safetensors", sidecars=sidecars)


def test_a_sidecar_that_is_there_already_is_kept_if_equal_and_never_lost(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert "config.json: exists already" in refusal(tmp_path, sidecars={"config.json": b"{ }"})
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    write(tmp_path, sidecars={"config.json": b"{}"})
    write(tmp_path, sidecars={"config.json": b"{ }"}, overwrite=True)
    assert (tmp_path / "config.json").read_bytes() == b"{ }"


def test_a_missing_sidecar_stops_before_any_work(tmp_path: Path) -> None:
    assert "cannot be written" in refusal(tmp_path / "out", folder=True, sidecars={"a": tmp_path / "absent"})
    assert everything_in(tmp_path) == []


# Existing output


def test_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    assert f"{path}: exists already\nhint: pass --overwrite" in refusal(path)
    assert path.read_bytes() == b"precious"
    write(path, overwrite=True)
    assert raw_bytes(load_file(path)["w"]) == raw_bytes(TENSORS["w"])
    assert everything_in(tmp_path) == ["x.safetensors"]


def test_overwriting_keeps_the_old_file_until_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError), stage(path, specs_of(TENSORS), overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"precious"
    assert everything_in(tmp_path) == ["x.safetensors"]


FORMS = {
    "whole": ["model.safetensors"],
    "two": [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ],
    "three": [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ],
}
SHARD_SIZES = {"whole": None, "two": 48, "three": 16}
FORM_OF = {size: form for form, size in SHARD_SIZES.items()}


@pytest.mark.parametrize("old", FORMS)
@pytest.mark.parametrize("new", FORMS)
@pytest.mark.parametrize("as_folder", [True, False])
def test_an_output_of_another_form_is_replaced_whole(tmp_path: Path, old: str, new: str, as_folder: bool) -> None:
    path = tmp_path if as_folder else tmp_path / "model.safetensors"
    (tmp_path / "model-of-mine.safetensors").write_bytes(b"")
    before = {name: random_tensor(code_of(tensor), tuple(tensor.shape), 99) for name, tensor in TENSORS.items()}
    write(path, before, shard_size=SHARD_SIZES[old])
    assert stems_in(tmp_path) == sorted([*FORMS[old], "model-of-mine.safetensors"])
    assert "exists already" in refusal(path, shard_size=SHARD_SIZES[new])
    assert stems_in(tmp_path) == sorted([*FORMS[old], "model-of-mine.safetensors"])
    opened = write(path, shard_size=SHARD_SIZES[new], overwrite=True)
    assert stems_in(tmp_path) == sorted([*FORMS[new], "model-of-mine.safetensors"])
    with open_checkpoint(opened) as checkpoint:
        assert raw_bytes(checkpoint.tensor("w")) == raw_bytes(TENSORS["w"])


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("old", FORMS)
@pytest.mark.parametrize("new", FORMS)
def test_an_overwriting_commit_that_dies_never_mixes_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """Die before each system call of the commit: what is there then is one whole model or can't be opened."""
    before = {name: random_tensor(code_of(tensor), tuple(tensor.shape), 99) for name, tensor in TENSORS.items()}
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for survived in range(40):
        folder = tmp_path / str(survived)
        folder.mkdir()
        write(folder, before, shard_size=SHARD_SIZES[old])
        status = in_child(lambda folder=folder, survived=survived: overwrite_and_die(folder, new, survived))
        try:
            with open_checkpoint(folder) as checkpoint:
                read = {name: raw_bytes(checkpoint.tensor(name)) for name in checkpoint.specs}
            assert read in [{name: raw_bytes(t) for name, t in model.items()} for model in (before, TENSORS)]
        except BadFile:
            assert status == DIED
        write(folder, shard_size=SHARD_SIZES[new], overwrite=True)
        assert stems_in(folder) == FORMS[new]
        if status == 0:
            return
    pytest.fail("no commit came through")


DIED = 9


def overwrite_and_die(folder: Path, new: str, survived: int) -> None:
    """Overwrite the model, but die at the system call that changes names after `survived` of them."""
    count = 0

    def dying(call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == survived:
                os._exit(DIED)
            count += 1
            return call(*args, **kwargs)

        return counted

    for name in ("unlink", "replace", "link", "rename"):
        setattr(os, name, dying(getattr(os, name)))
    publish._by_another = lambda under: False  # type: ignore[assignment]  # a kill of everything
    write(folder, shard_size=SHARD_SIZES[new], overwrite=True)


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with stage(path, specs_of({})) as sink:
        path.write_bytes(b"precious")
        with pytest.raises(BadOutput, match="exists already"):
            sink.commit(META)
    assert path.read_bytes() == b"precious"
    folder = tmp_path / "out"
    with stage(folder, specs_of({}), folder=True) as sink:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"precious")
        with pytest.raises(BadOutput, match="exists already"):
            sink.commit(META)
    assert everything_in(tmp_path) == ["out", "out/model.safetensors", "x.safetensors"]


def test_a_commit_that_fails_half_way_takes_its_files_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([os.link])

    def second_fails(*paths: Any) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        next(calls, fail)(*paths)

    monkeypatch.setattr(os, "link", second_fails)
    monkeypatch.setattr(publish, "_by_another", lambda under: False)
    assert "Input/output error" in refusal(tmp_path, shard_size=48)
    assert everything_in(tmp_path) == []


def test_a_disk_without_hard_links_still_gets_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(publish, "_by_another", lambda under: False)
    write(tmp_path / "x.safetensors")
    assert everything_in(tmp_path) == ["x.safetensors"]
    for size in (48, 16, None, 48):
        write(tmp_path / "x.safetensors", shard_size=size, overwrite=True)
        assert stems_in(tmp_path) == [name.replace("model", "x") for name in FORMS[FORM_OF[size]]]


# Outputs that cannot be


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    before = everything_in(tmp_path)
    assert "exists already" in refusal(tmp_path / "loop.safetensors")
    assert "does not end in .safetensors" in refusal(tmp_path / "x.pt")
    assert "cannot be written" in refusal(tmp_path / "file" / "x.safetensors")
    assert "is a file, not a folder" in refusal(tmp_path / "file", folder=True)
    assert "not a regular file" in refusal(tmp_path / "pipe.safetensors", overwrite=True)
    assert "cannot be written: File name too long" in refusal(tmp_path / f"{'x' * 250}.safetensors")
    assert everything_in(tmp_path) == before


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x.safetensors").symlink_to("there/y.safetensors")
    write(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").is_symlink()
    assert everything_in(tmp_path) == ["there", "there/y.safetensors", "x.safetensors"]
    assert "exists already" in refusal(tmp_path / "x.safetensors")


def test_missing_parents_are_made_by_the_commit(tmp_path: Path) -> None:
    with stage(tmp_path / "a/b/x.safetensors", specs_of(TENSORS)):
        assert not (tmp_path / "a").exists()
    with stage(tmp_path / "c/d/out", specs_of(TENSORS), folder=True):
        assert not (tmp_path / "c").exists()
    assert everything_in(tmp_path) == []
    write(tmp_path / "a/b/x.safetensors")
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/x.safetensors"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    whole = os.open

    def refuse(path: Any, flags: int, *rest: int, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return whole(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    message = refusal(tmp_path / "x.safetensors")
    assert f"{tmp_path / 'x.safetensors'}: cannot be written: {os.strerror(number)}" in message


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_full_disk_at_any_time_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, as_folder: bool
) -> None:
    path = tmp_path / "a" / ("out" if as_folder else "x.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        message = refusal(path, folder=as_folder, shard_size=48)
        assert f"{path}" in message
        assert "disk full: the output needs" in message
        assert "are free" in message
    assert everything_in(tmp_path) == []
    write(path, folder=as_folder)


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    huge = [OutputSpec("a", "F32", (2**30, 2**17))]
    with pytest.raises(BadOutput, match=r"disk full|too large"), stage(tmp_path / "x.safetensors", huge):
        pytest.fail("the block ran")
    assert everything_in(tmp_path) == []


def test_a_file_system_without_preallocation_is_measured_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write(tmp_path / "x.safetensors")
    monkeypatch.setattr(writer, "room_at", lambda _: 10)
    monkeypatch.setattr(disk, "room_at", lambda _: 10)
    assert "10 are free" in refusal(tmp_path / "y.safetensors")


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_limit_on_file_size_is_an_error_too(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(200_000)}  # made here: OpenMP does not survive a fork

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        message = refusal(tmp_path / "x.safetensors", tensors=tensors)
        assert "cannot be written: File too large" in message

    assert in_child(limited) == 0
    assert everything_in(tmp_path) == []


def test_a_sync_that_failed_in_the_background_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(_: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    data = torch.zeros(20 * 2**20, dtype=torch.uint8)
    with stage(tmp_path / "x.safetensors", specs_of({"a": data})) as sink:
        sink.write("a", data)
        assert failed.wait(10)
        with pytest.raises(BadOutput, match="Input/output error"):
            sink.commit(META)
    assert everything_in(tmp_path) == []


# Discarding, staging names, permissions


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_without_a_commit_nothing_is_left(tmp_path: Path, as_folder: bool, error: Any) -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    path = tmp_path / "out" if as_folder else tmp_path / "x.safetensors"
    try:
        with stage(path, specs_of(TENSORS), folder=as_folder, shard_size=48) as sink:
            sink.write("w", TENSORS["w"])
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error
    assert everything_in(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    with pytest.raises(ValueError, match="closed"):
        sink.write("h", TENSORS["h"])


@pytest.mark.parametrize("as_folder", [True, False])
def test_staging_names_are_hidden_from_globs_for_weights(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "out" if as_folder else tmp_path / "x.safetensors"
    with stage(path, specs_of(TENSORS), folder=as_folder, shard_size=48, sidecars={"a": b""} if as_folder else None):
        staged = [entry.relative_to(tmp_path) for entry in tmp_path.rglob("*") if entry.is_file()]
        assert len(staged) == (4 if as_folder else 3)
        assert all(entry.parts[0].startswith(".") and ".tmp-" in entry.parts[0] for entry in staged)
        assert not list(tmp_path.rglob("*.safetensors"))
        assert not path.exists()


def test_stale_staging_files_go_and_those_of_live_writers_stay(tmp_path: Path) -> None:
    path = tmp_path / "x[1]*.safetensors"
    stale = tmp_path / f".{path.name}.tmp-00000000"
    stale.write_bytes(b"left by a killed run")
    other = tmp_path / ".y.safetensors.tmp-00000000"
    other.write_bytes(b"of another output")
    with stage(path, specs_of(TENSORS)) as first:
        assert not stale.exists()
        live = [entry for entry in everything_in(tmp_path) if entry.startswith(f".{path.name}")]
        with stage(path, specs_of(TENSORS)):
            assert (tmp_path / live[0]).exists()
        for name, tensor in TENSORS.items():
            first.write(name, tensor)
        first.commit(META)
    assert everything_in(tmp_path) == [other.name, path.name]


@pytest.mark.parametrize("exists", [True, False])
def test_stale_staging_folders_go_too(tmp_path: Path, exists: bool) -> None:
    stale = tmp_path / ".out.tmp-00000000"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"")
    if exists:
        (tmp_path / "out").mkdir()
    write(tmp_path / "out", folder=True)
    assert everything_in(tmp_path) == ["out", "out/model.safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_killed_run_of_another_form_left_goes_too(tmp_path: Path, form: str) -> None:
    for files in FORMS.values():
        for name in files:
            (tmp_path / f".{name}.tmp-0123abcd").write_bytes(b"")
    kept = [".config.json.tmp-0123abcd", ".model.safetensors.tmp-mine", ".models.safetensors.tmp-0123abcd"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    write(tmp_path, shard_size=SHARD_SIZES[form])
    assert stems_in(tmp_path) == sorted([*kept, *FORMS[form]])
    write(tmp_path, shard_size=SHARD_SIZES[form], sidecars={"config.json": b"{}"}, overwrite=True)
    assert stems_in(tmp_path) == sorted([*kept[1:], "config.json", *FORMS[form]])


def test_a_staging_file_swept_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = iter([True, False, False])
    whole = staging.lock

    def swept(number: int, *, known: bool = False) -> bool:
        if next(sweeps, False):
            for path in tmp_path.glob(".x*"):
                path.rmdir()
        return whole(number, known=known)

    monkeypatch.setattr(staging, "lock", swept)
    write(tmp_path / "x.safetensors")
    assert everything_in(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        write(tmp_path / "x.safetensors")
        write(tmp_path / "out", folder=True, sidecars={"config.json": b"{}"})
    finally:
        os.umask(old)
    for path in ("x.safetensors", "out/model.safetensors", "out/config.json"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    with stage(tmp_path / "out", specs_of(TENSORS), folder=True):
        links = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]
        assert len(links) == 2  # the staging folder, which is locked, and the file that was opened last
        assert not any(os.get_inheritable(int(link.name)) for link in links)
