"""Loading: sub-samples, fingerprints, broken items, labels of every kind, and the cache."""

import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets as huggingface
import numpy as np
import pytest
import torch
from data_cases import Bytes, Squares, class_folders, load, load_plain, npz, pictures, resolve, task
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from taskmerge.checkpoint.staging import remove_stale
from taskmerge.data import cache as caching
from taskmerge.data import decoding, loading
from taskmerge.data.cache import default_cache
from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Labelled
from taskmerge.data.loading import LoadOptions
from taskmerge.data.streams import load_unlabelled
from taskmerge.errors import BadFile, Mismatch, UsageError
from taskmerge.specs.class_names import match_classes
from taskmerge.specs.suite import Split


def same(one: Labelled, other: Labelled) -> bool:
    ours, theirs = one.items, other.items
    return (
        one.fingerprint == other.fingerprint
        and ours.skipped == theirs.skipped
        and torch.equal(ours.indices, theirs.indices)
        and all(
            torch.equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs.keys() | theirs.inputs.keys()
        )
        and torch.equal(one.labels, other.labels)
    )


# --- which items -----------------------------------------------------------------------------------------------


def test_a_limit_draws_by_the_seed_alone(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(200), y=np.arange(200) % 3)
    whole, few, more = load(split), load(split, limit=20), load(split, limit=50)
    assert few.items.indices.tolist() == sorted(set(few.items.indices.tolist()))
    assert len(few) == 20
    assert set(few.items.indices.tolist()) < set(more.items.indices.tolist())
    assert torch.equal(few.items.inputs["pixels"], whole.items.inputs["pixels"][few.items.indices])
    assert torch.equal(few.labels, whole.labels[few.items.indices])
    assert same(few, load(split, limit=20))
    assert few.items.indices.tolist() != load(split, limit=20, seed=1).items.indices.tolist()
    assert same(load(split, limit=200), whole)
    # written down, so that another machine or version draws the same
    assert load(split, limit=5).items.indices.tolist() == DRAWN
    assert len(load(split, limit=1)) == 1
    with pytest.raises(UsageError, match="leaves nothing"):
        load(split, limit=0)


DRAWN = [3, 27, 60, 150, 168]


def test_an_empty_split_and_one_that_does_not_exist(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(1)[:0], y=np.zeros(0, int))
    with pytest.raises(BadFile, match="split `test` of `birds` has no items"):
        load(split)
    with pytest.raises(UsageError, match=r"unknown split of `birds` `tset`\nhint: did you mean `test`"):
        load_labelled(task(split), "tset", Squares(), LoadOptions(resolve=resolve))
    with pytest.raises(UsageError, match="known: adapt, test"):
        load_labelled(task(split, adapt=split), "x", Squares(), LoadOptions(resolve=resolve))


# --- fingerprints ----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content_whatever_the_form(tmp_path: Path) -> None:
    x, y = pictures(130), np.arange(130) % 3
    one = load(npz(tmp_path / "a.npz", x=x, y=y))
    assert (
        load(npz(tmp_path / "b.npz", save=np.savez_compressed, x=x, y=y.astype(np.uint8))).fingerprint
        == one.fingerprint
    )
    assert load(npz(tmp_path / "a.npz", x=x, y=y), Squares(8)).fingerprint == one.fingerprint
    for place in range(130):
        (tmp_path / "d" / "all").mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[place]).save(tmp_path / "d" / "all" / f"{place:03}.png")
    folder = load_plain(Split("images", tmp_path / "d"))
    assert folder.fingerprint == load_plain(replace(npz(tmp_path / "a.npz", x=x), y=None)).fingerprint
    other = {one.fingerprint, folder.fingerprint}
    x[77, 3, 3, 1] ^= 1
    other.add(load(npz(tmp_path / "a.npz", x=x, y=y)).fingerprint)
    x[77, 3, 3, 1] ^= 1
    y[9] = (y[9] + 1) % 3
    other.add(load(npz(tmp_path / "a.npz", x=x, y=y)).fingerprint)
    other.add(load(npz(tmp_path / "a.npz", x=x[::-1], y=y)).fingerprint)
    assert len(other) == 5


def test_texts_cannot_be_shifted_between_pairs(tmp_path: Path) -> None:
    prints = set()
    for rows in ([("ab", "c")], [("a", "bc")], [("abc", "")]):
        (tmp_path / "a.jsonl").write_text("\n".join(f'{{"a": "{a}", "b": "{b}"}}' for a, b in rows))
        prints.add(load_plain(Split("jsonl", tmp_path / "a.jsonl", ("a", "b")), Bytes()).fingerprint)
    assert len(prints) == 3


# --- what cannot be decoded ------------------------------------------------------------------------------------


def broken_folders(root: Path) -> Split:
    split = class_folders(root, ["no", "so", "yes"], each=60, ending="jpg", step=80)
    whole = (root / "so" / "7.jpg").read_bytes()
    (root / "so" / "7.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "yes" / "3.jpg").write_bytes(b"<html>")
    (root / "yes" / "4.jpg").write_bytes(b"")
    return split


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"so/7\.jpg: cannot be decoded: .*\nhint: .*--skip-bad"):
        load(broken_folders(tmp_path / "d"))
    (tmp_path / "d" / "so" / "7.jpg").unlink()
    with pytest.raises(BadFile, match=r"yes/3\.jpg: cannot be decoded: no picture in a known format"):
        load(Split("images", tmp_path / "d", (), "label"))


def test_skipped_items_are_counted_and_take_their_labels_with_them(tmp_path: Path) -> None:
    labelled = load(broken_folders(tmp_path / "d"), skip_bad=True)
    assert labelled.items.skipped == 3
    assert len(labelled) == 177
    assert labelled.labels.tolist() == [0] * 60 + [2] * 59 + [1] * 58
    assert labelled.items.inputs["pixels"][:, 0, 0, 0].tolist() == pytest.approx(
        [0] * 60 + [80] * 59 + [160] * 58, abs=9
    )
    assert len(set(labelled.items.indices.tolist())) == 177
    for file in (tmp_path / "d").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(BadFile, match="none of 180 items can be decoded"):
        load(Split("images", tmp_path / "d", (), "label"), skip_bad=True)


def test_portions_are_few_at_a_time_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a portion is, only a few are decoded ahead of it."""
    monkeypatch.setattr(decoding, "cores", lambda: 3)
    monkeypatch.setattr(decoding, "SECONDS_WORTH_A_THREAD", 0.0)
    release, ahead = threading.Event(), []

    class Slow(Squares):
        def __call__(self, raw: Sequence[Any]) -> Any:
            if int(np.asarray(raw[0])[0, 0, 0]) == 1:  # the first alone is tried without threads
                release.wait(0.5)
                ahead.append(len(self.seen))
            return super().__call__(raw)

    x = np.repeat(np.arange(20, dtype=np.uint8), decoding.PICTURES_AT_A_TIME)[:, None, None, None]
    items = load_plain(npz(tmp_path / "a.npz", x=np.broadcast_to(x, (len(x), 16, 16, 3))), Slow())
    assert items.inputs["pixels"][:, 0, 0, 0].tolist() == x.reshape(-1).tolist()
    assert 1 < ahead[0] <= 5


# --- labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [3, -1, 2**40])
def test_a_label_outside_the_classes_is_named(tmp_path: Path, bad: int) -> None:
    y = np.array([0, 1, bad, 2])
    says = rf"a\.npz: `x` item 2: label {bad} is outside the 3 classes of `birds`\nhint: classes count from 0 to 2"
    with pytest.raises(BadFile, match=says):
        load(npz(tmp_path / "a.npz", x=pictures(4), y=y))


def test_withheld_labels_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="every label is -1: this split's labels are withheld"):
        load(npz(tmp_path / "a.npz", x=pictures(4), y=np.full(4, -1)))


def test_numbers_for_regression(tmp_path: Path) -> None:
    y = np.array([0.5, -2.0, 3.25])
    labelled = load(npz(tmp_path / "a.npz", x=pictures(3), y=y[:, None]), kind="regression")
    assert labelled.labels.dtype == torch.float32
    assert labelled.labels.tolist() == y.tolist()
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(BadFile, match=rf"item 1: label is {re.escape(str(bad))}"):
            load(npz(tmp_path / "a.npz", x=pictures(3), y=np.array([0, bad, 1])), kind="regression")
    with pytest.raises(BadFile, match="labels of shape 3x2"):
        load(npz(tmp_path / "a.npz", x=pictures(3), y=np.zeros((3, 2))), kind="regression")


def test_maps_of_classes(tmp_path: Path) -> None:
    maps = (np.arange(2 * 16 * 16).reshape(2, 16, 16) % 3).astype(np.uint8)
    maps[0, 0, 0] = 255
    labelled = load(npz(tmp_path / "a.npz", x=pictures(2), y=maps[..., None]), kind="segmentation")
    assert labelled.labels.dtype == torch.int64
    assert labelled.labels.tolist() == np.where(maps == 255, -1, maps.astype(int)).tolist()
    floats = load(npz(tmp_path / "a.npz", x=pictures(2), y=maps.astype(np.float32)), kind="segmentation")
    assert torch.equal(floats.labels, labelled.labels)
    with pytest.raises(BadFile, match="class maps are float32, not integers"):
        load(npz(tmp_path / "a.npz", x=pictures(2), y=maps / np.float32(2)), kind="segmentation")
    maps[1, 2, 3] = 3
    with pytest.raises(BadFile, match="item 1: label 3 is outside the 3 classes"):
        load(npz(tmp_path / "a.npz", x=pictures(2), y=maps), kind="segmentation")


@pytest.mark.parametrize(("kind", "shape"), [("depth", (2, 16, 16)), ("normals", (2, 3, 16, 16))])
def test_maps_of_numbers(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(0).normal(size=shape)
    last = maps.transpose(0, 2, 3, 1) if kind == "normals" else maps[:, None]
    for stored in (maps, last):
        labelled = load(npz(tmp_path / "a.npz", x=pictures(2), y=stored), kind=kind)
        assert torch.equal(labelled.labels, torch.from_numpy(maps).float())
    maps[1].flat[0] = np.nan
    with pytest.raises(BadFile, match="item 1: map holds NaN"):
        load(npz(tmp_path / "a.npz", x=pictures(2), y=maps), kind=kind)
    with pytest.raises(BadFile, match="map has the shape"):
        load(npz(tmp_path / "a.npz", x=pictures(2), y=np.zeros((2, 5))), kind=kind)
    with pytest.raises(Mismatch, match="label maps are 8x8, pictures 16x16"):
        load(npz(tmp_path / "a.npz", x=pictures(2), y=np.ones_like(maps[..., ::2, ::2])), kind=kind)


@given(st.lists(st.sampled_from("aAbBcC_-"), min_size=1, max_size=5, unique=True), st.data())
def test_matching_by_name_is_what_it_says(wanted: list[str], data: st.DataObject) -> None:
    known = data.draw(st.permutations(wanted))[: data.draw(st.integers(1, len(wanted)))]
    table = match_classes(known, wanted)
    assert table == {place: wanted.index(name) for place, name in enumerate(known)}
    assert match_classes([*known, "stranger"], wanted) is None


def test_a_name_that_could_be_two_classes_is_none() -> None:
    assert match_classes(["x y"], ["x_y", "X-y"]) is None
    assert match_classes(["x_y"], ["X-y", "x_y"]) == {0: 1}


# --- the cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is worth keeping, however fast it was made."""
    monkeypatch.setattr(loading, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(loading, "BYTES_A_SECOND", float("inf"))
    return


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


@pytest.mark.usefixtures("keep")
def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    split, cache = class_folders(tmp_path / "d", ["no", "so", "yes"], each=50), tmp_path / "cache"
    first, second = Squares(), Squares()
    made, found = load(split, first, cache=cache), load(split, second, cache=cache)
    assert same(made, found)
    assert same(made, load(split))
    assert not [one for one in Path("/proc/self/fd").glob("*") if str(one.resolve()).startswith(str(cache))], "closed"
    assert first.seen
    assert not second.seen
    assert len(kept(cache)) == 1
    items = load_plain(split, second, cache=cache)  # inputs are shared, labels are never kept
    assert not second.seen
    assert torch.equal(items.inputs["pixels"], made.items.inputs["pixels"])


def two_splits(folder: Path, form: str) -> dict[str, Split]:
    """Two splits of as many pictures each, at one place."""
    parts = {"train": pictures(4, seed=1), "test": pictures(4, seed=2)}
    if form == "npz":
        np.savez(folder / "a.npz", **parts)
        return {name: Split("npz", folder / "a.npz", (name,)) for name in parts}
    tables = {name: {"image": [Image.fromarray(one) for one in x]} for name, x in parts.items()}
    if form == "columns":
        joined = huggingface.Dataset.from_dict({name: table["image"] for name, table in tables.items()})
        joined.save_to_disk(folder / "a")
        return {name: Split("datasets", folder / "a", (name,)) for name in parts}
    made = huggingface.DatasetDict({name: huggingface.Dataset.from_dict(table) for name, table in tables.items()})
    made.save_to_disk(folder / "a")
    named = form == "named"
    return {name: Split("datasets", folder / "a", ("image",), name=name if named else None) for name in parts}


@pytest.mark.usefixtures("keep")
@pytest.mark.parametrize("form", ["npz", "columns", "named", "unnamed"])
def test_splits_at_one_place_are_kept_apart(tmp_path: Path, form: str) -> None:
    splits, cache = two_splits(tmp_path, form), tmp_path / "cache"
    about = task(splits["test"], train=splits["train"])
    for _ in range(2):
        for name, seed in (("train", 1), ("test", 2)):
            items = load_unlabelled(about, name, Squares(), LoadOptions(resolve=resolve, cache=cache))
            assert torch.equal(items.inputs["pixels"], torch.from_numpy(pictures(4, seed=seed)).permute(0, 3, 1, 2))
    assert len(kept(cache)) == 2


@pytest.mark.usefixtures("keep")
@pytest.mark.parametrize("change", ["content", "time", "more", "preprocessing", "limit"])
def test_what_has_changed_is_made_anew(tmp_path: Path, change: str) -> None:
    split, cache = class_folders(tmp_path / "d", ["no", "so", "yes"], each=5), tmp_path / "cache"
    load(split, cache=cache)
    prepare, options = Squares(), {}
    picture = tmp_path / "d" / "no" / "0.png"
    if change == "content":
        Image.new("RGB", (20, 18), (9, 9, 9)).save(picture)
    if change == "time":
        os.utime(picture, ns=(1, 1))
    if change == "more":
        Image.new("RGB", (20, 18)).save(tmp_path / "d" / "no" / "9.png")
    if change == "preprocessing":
        prepare = Squares(8)
    if change == "limit":
        options = {"limit": 4}
    assert same(load(split, prepare, cache=cache, **options), load(split, Squares(prepare.size), **options))
    assert prepare.seen
    assert len(kept(cache)) == 2


@pytest.mark.usefixtures("keep")
@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "text", "folder", "other"])
def test_a_damaged_file_of_the_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    split, cache = class_folders(tmp_path / "d", ["no", "so", "yes"], each=5), tmp_path / "cache"
    made = load(split, cache=cache)
    (file,) = kept(cache)
    raw = bytearray(file.read_bytes())
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, file, {"format": "pt"})
    else:
        raw[-5] ^= 4
        file.write_bytes({"cut": raw[:-9], "empty": b"", "flip": bytes(raw), "text": b"no tensors at all"}[damage])
    told: list[str] = []
    prepare = Squares()
    assert same(load(split, prepare, cache=cache, note=told.append), made)
    assert prepare.seen
    assert any("could not be kept" in one for one in told) == (damage == "folder")
    if damage != "folder":
        assert same(load(split, Squares(), cache=cache), made)
        assert len(kept(cache)) == 1


@pytest.mark.usefixtures("keep")
def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, told = class_folders(tmp_path / "d", ["no", "so", "yes"]), []
    (tmp_path / "file").write_text("")
    assert same(load(split, cache=tmp_path / "file" / "cache", note=told.append), load(split))
    assert "could not be kept" in told[-1]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "header_bytes", full)
    assert same(load(split, cache=tmp_path / "cache", note=told.append), load(split))
    assert "No space left" in told[-1]
    assert kept(tmp_path / "cache") == []


@pytest.mark.usefixtures("keep")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_is_kept_is_a_file_like_any_other(tmp_path: Path, umask: int) -> None:
    split = class_folders(tmp_path / "d", ["no", "so", "yes"])
    before = os.umask(umask)
    try:
        load(split, cache=tmp_path / "cache")
    finally:
        os.umask(before)
    (file,) = kept(tmp_path / "cache")
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert {name.split(".")[0] for name in load_file(file)} == {"input", "indices"}, "the library reads it"


@pytest.mark.usefixtures("keep")
def test_what_is_being_written_is_not_taken_for_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, cache = class_folders(tmp_path / "d", ["no", "so", "yes"]), tmp_path / "cache"
    there: list[bool] = []

    def meanwhile(staged: Path, final: Path) -> None:
        """Another run to the same name begins before the rename."""
        remove_stale(cache, lambda name: name == final.name)
        there.append(staged.exists())

    monkeypatch.setattr(caching.os, "replace", meanwhile)
    load(split, cache=cache)
    assert there == [True]


@pytest.mark.usefixtures("keep")
def test_what_was_skipped_is_not_passed_over_in_silence_later(tmp_path: Path) -> None:
    split, cache = broken_folders(tmp_path / "d"), tmp_path / "cache"
    made = load(split, cache=cache, skip_bad=True)
    second = Squares()
    assert same(load(split, second, cache=cache, skip_bad=True), made)
    assert not second.seen
    with pytest.raises(BadFile, match="cannot be decoded"):
        load(split, cache=cache)


def test_what_is_quick_is_not_kept(tmp_path: Path) -> None:
    load_plain(npz(tmp_path / "a.npz", x=pictures(300)), cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TASKMERGE_CACHE", raising=False)
    assert default_cache() == tmp_path / ".cache" / "taskmerge"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/taskmerge")
    monkeypatch.setenv("TASKMERGE_CACHE", "/y")
    assert default_cache() == Path("/y")
