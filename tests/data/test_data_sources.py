"""Every form gives the items and labels that were put in; what is missing or broken is named."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_cases import Bytes, Squares, class_folders, load, load_plain, npz, pictures, resolve, task, texts_of
from PIL import Image

from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions
from taskmerge.data.sources.npz import read_array
from taskmerge.errors import BadFile, Mismatch, UsageError
from taskmerge.specs.suite import Split

ROWS = [{"text": f"text {n}", "other": f"pair {n}", "label": n % 3} for n in range(7)]


# --- npz -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_as_they_are(tmp_path: Path, save: Any) -> None:
    x, y = pictures(150), np.arange(150, dtype=np.int16) % 3
    labelled = load(npz(tmp_path / "a.npz", save=save, x=x, y=y, unused=np.zeros(3)))
    assert torch.equal(labelled.items.inputs["pixels"], torch.from_numpy(x).permute(0, 3, 1, 2))
    assert labelled.labels.dtype == torch.int64
    assert labelled.labels.tolist() == y.tolist()
    assert labelled.items.indices.tolist() == list(range(150))
    assert len(labelled) == 150


def test_stored_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    order = np.asfortranarray(np.arange(24).reshape(2, 3, 4))
    np.savez(tmp_path / "a.npz", x=pictures(3), fortran=order, empty=np.empty((0, 4)), texts=np.array(["ä", "bcd"]))
    assert isinstance(read_array(tmp_path / "a.npz", "x"), np.memmap)
    for name, wanted in (("x", pictures(3)), ("fortran", order), ("empty", np.empty((0, 4))), ("texts", ["ä", "bcd"])):
        found = read_array(tmp_path / "a.npz", name)
        assert found is not None
        np.testing.assert_array_equal(found, wanted)
    assert read_array(tmp_path / "a.npz", "z") is None


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_channels_may_come_first_and_grey_without_any(tmp_path: Path, axes: Sequence[int]) -> None:
    x = pictures(4)
    items = load_plain(npz(tmp_path / "a.npz", x=x.transpose(axes)))
    assert torch.equal(items.inputs["pixels"], torch.from_numpy(x).permute(0, 3, 1, 2))
    grey = load_plain(npz(tmp_path / "g.npz", x=x[..., 0])).inputs["pixels"]
    assert torch.equal(grey, torch.from_numpy(x[..., :1]).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    bad = np.array([print, len], dtype=object)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=bad)
        with pytest.raises(BadFile, match="never unpickled"):
            load_plain(Split("npz", tmp_path / "a.npz", ("x",)))


def test_texts_in_an_array(tmp_path: Path) -> None:
    labelled = load(npz(tmp_path / "a.npz", x=np.array(["one", "öh", "three"]), y=np.array([0, 2, 1])), Bytes())
    assert texts_of(labelled.items) == ["one", "öh", "three"]
    for x in (np.array([b"one"]), np.array([["one"]]), np.arange(3.0)):
        with pytest.raises(BadFile, match="neither pictures nor texts"):
            load_plain(npz(tmp_path / "a.npz", x=x), Bytes())
    with pytest.raises(BadFile, match="is a single value"):
        load_plain(npz(tmp_path / "a.npz", x=np.array("one")), Bytes())


def test_a_missing_array_is_named_with_those_there(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", test_x=pictures(2), test_y=np.zeros(2, int))
    with pytest.raises(
        UsageError, match=r"suite.yaml:7:3: .*a.npz: no array `text_x`\nhint: did you mean `test_x`"
    ) as caught:
        load(replace(split, x=("text_x",)))
    assert "`test_y`" in str(caught.value)
    with pytest.raises(UsageError, match="no array `label`"):
        load(replace(split, x=("test_x",), y="label"))


def test_items_have_one_array(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(2))
    for names in ((), ("x", "x")):
        with pytest.raises(UsageError, match=f"names {len(names)} arrays"):
            load(replace(split, x=names))


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="`x` has 3, `y` has 2"):
        load(npz(tmp_path / "a.npz", x=pictures(3), y=np.zeros(2, int)))


@pytest.mark.parametrize(
    "x",
    [np.zeros((3, 8, 8), np.float32), np.zeros((3, 8)), np.zeros((3, 8, 8, 4), np.uint8), np.zeros((3, 8, 8, 3), int)],
    ids=lambda x: f"{x.dtype}-{x.ndim}",
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path: Path, x: Any) -> None:
    with pytest.raises(BadFile, match="neither pictures nor texts"):
        load_plain(npz(tmp_path / "a.npz", x=x))


@pytest.mark.parametrize("damage", ["cut", "flip", "no zip", "empty"])
def test_a_damaged_archive_is_one_message(tmp_path: Path, damage: str) -> None:
    split = npz(tmp_path / "a.npz", save=np.savez_compressed, x=pictures(50))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    if damage == "flip":
        raw[len(raw) // 2 : len(raw) // 2 + 8] = b"\xff" * 8
    new = {"cut": raw[: len(raw) // 2], "flip": raw, "no zip": b"text" * 20, "empty": b""}[damage]
    (tmp_path / "a.npz").write_bytes(new)
    with pytest.raises(BadFile, match=r"a\.npz"):
        load(split)


def test_a_stored_array_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(2))
    raw = (tmp_path / "a.npz").read_bytes()
    assert raw.count(b"(2, 16, 16, 3), }") == 1
    (tmp_path / "a.npz").write_bytes(raw.replace(b"(2, 16, 16, 3), }", b"(9, 16, 16, 3), }"))
    with pytest.raises(BadFile, match=r"a\.npz"):
        load(split)


# --- class folders ---------------------------------------------------------------------------------------------


def test_folders_are_matched_to_classes_by_name(tmp_path: Path) -> None:
    names = ["blue_whale", "Ant", "sea-lion"]
    told: list[str] = []
    labelled = load(class_folders(tmp_path / "d", names), classes=["blue whale", "ant", "sea lion"], note=told.append)
    assert labelled.labels.tolist() == labelled.items.inputs["pixels"][:, 0, 0, 0].tolist()
    assert labelled.labels.tolist() == [1, 1, 0, 0, 2, 2]  # folders in sorted order, capitals first
    assert len(told) == 1
    assert "by name" in told[0]


def test_only_folders_that_are_shown_are_classes(tmp_path: Path) -> None:
    split = class_folders(tmp_path / "d", ["a", "b", ".hidden"])
    (tmp_path / "d" / "README.md").write_text("pictures of a and b")
    labelled = load(split, classes=["a", "b"])
    assert labelled.labels.tolist() == [0, 0, 1, 1]


def test_some_folders_of_a_task_are_enough_where_the_suite_says_so(tmp_path: Path) -> None:
    split = class_folders(tmp_path / "d", ["c", "a"])
    with pytest.raises(BadFile, match="1 only in the task: `b`"):
        load(split, classes=["a", "b", "c"])
    told: list[str] = []
    labelled = load(replace(split, classes_by="name"), classes=["a", "b", "c"], note=told.append)
    assert labelled.labels.tolist() == [0, 0, 2, 2]
    assert "1 of 3 classes have no item: `b`" in told[-1]


def test_strange_folder_names_are_refused_unless_their_order_is_said_to_count(tmp_path: Path) -> None:
    split = class_folders(tmp_path / "d", ["n0144", "n0145"])
    with pytest.raises(BadFile, match="2 only there: `n0144`, `n0145`; 2 only in the task: `x`, `y`") as caught:
        load(split, classes=["x", "y"])
    assert "classes_by: number" in str(caught.value.hint)
    assert load(replace(split, classes_by="number"), classes=["x", "y"]).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["{}", "{:03d}", "class_{}", "Class {:02d}"])
def test_numbers_count_as_numbers_not_as_texts(tmp_path: Path, first: int, form: str) -> None:
    names = [form.format(number + first) for number in range(12)]
    split = class_folders(tmp_path / "d", names, each=1)
    found = load(split, classes=[f"flower {chr(97 + number)}" for number in range(12)])
    order = sorted(range(12), key=lambda number: names[number])
    assert found.labels.tolist() == order
    with pytest.raises(BadFile, match="12 classes are not the task's 13"):
        load(split, classes=[f"flower {number}x" for number in range(13)])


def test_names_behind_numbers_are_names(tmp_path: Path) -> None:
    split = class_folders(tmp_path / "d", ["001.Red_Bird", "002.Blue-Bird"], each=1)
    assert load(split, classes=["blue bird", "red bird"]).labels.tolist() == [1, 0]


def test_folders_named_by_number_are_those_classes(tmp_path: Path) -> None:
    split = class_folders(tmp_path / "d", [str(number) for number in range(11)], each=1)
    told: list[str] = []
    labelled = load(split, classes=[f"class of {n}" for n in range(11)], note=told.append)
    assert labelled.labels.tolist() == labelled.items.inputs["pixels"][:, 0, 0, 0].tolist()
    assert "by number" in told[0]


def test_classes_that_differ_only_by_case_stay_apart(tmp_path: Path) -> None:
    labelled = load(class_folders(tmp_path / "d", ["A", "a"]), classes=["a", "A"])
    assert labelled.labels.tolist() == [1, 1, 0, 0]


def test_a_wrong_number_of_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="its 2 classes are not the task's 3"):
        load(class_folders(tmp_path / "d", ["n01", "n02"]))


def test_folders_agree_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    split = class_folders(tmp_path / "d", ["no", "so", "yes"], each=3, ending="jpg")
    (tmp_path / "d" / "no" / "deep").mkdir()
    Image.new("L", (9, 9), 7).save(tmp_path / "d" / "no" / "deep" / "z.png")
    (tmp_path / "d" / "no" / "notes.txt").write_text("no picture")
    rival = ImageFolder(tmp_path / "d")
    labelled = load(split, classes=["no", "so", "yes"])
    assert labelled.labels.tolist() == rival.targets
    assert torch.equal(labelled.items.inputs["pixels"], Squares()([picture for picture, _ in rival])["pixels"])


def test_pictures_with_transparency_lose_it(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "d" / "a.png", transparency=b"\x00\x80")
    items = load_plain(Split("images", tmp_path / "d"))
    assert items.inputs["pixels"][0, :, 0, 0].tolist() == [10, 20, 30]


# --- JSON lines ------------------------------------------------------------------------------------------------


def lines(path: Path, rows: Sequence[Any] = ROWS) -> Split:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return Split("jsonl", path, ("text",), "label", place="suite.yaml:3:5")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_of_texts(tmp_path: Path, name: str) -> None:
    labelled = load(lines(tmp_path / name), Bytes())
    assert texts_of(labelled.items) == [row["text"] for row in ROWS]
    assert labelled.labels.tolist() == [row["label"] for row in ROWS]


def test_pairs_of_texts_and_named_labels(tmp_path: Path) -> None:
    rows = [{**row, "label": ("so", "no", "yes")[n % 3]} for n, row in enumerate(ROWS)]
    split = replace(lines(tmp_path / "a.jsonl", rows), x=("other", "text"))
    labelled = load(split, Bytes())
    assert texts_of(labelled.items) == [f"{row['other']}|{row['text']}" for row in ROWS]
    assert labelled.labels.tolist() == [2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("third", "says"),
    [
        ('{"text": "a"}', r"a\.jsonl:3: lacks the key `label`"),
        ("{", r"a\.jsonl:3: is not JSON"),
        ("[1]", r"a\.jsonl:3: is not an object"),
        ('{"text": 5, "label": 1}', r"a\.jsonl:3: cannot be decoded: `5` is neither"),
        ('{"text": null, "label": 1}', r"a\.jsonl:3: cannot be decoded: an empty value"),
        ('{"text": "a", "label": 3}', r"a\.jsonl:3: label 3 is outside the 3 classes of `birds`"),
        ('{"text": "a", "label": -2}', r"a\.jsonl:3: label -2 is outside"),
        ('{"text": "a", "label": 1.5}', r"a\.jsonl:3: label `1.5` is no class number"),
        ('{"text": "a", "label": NaN}', r"a\.jsonl:3: label `nan` is no class number"),
        ('{"text": "a", "label": null}', r"a\.jsonl:3: label `None` is no class number"),
        ('{"text": "a", "label": "yes"}', r"a\.jsonl:3: label `yes` is no class number"),
        ('{"text": "a", "label": {}}', r"a\.jsonl:3: label `{}` is no class number"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, third: str, says: str) -> None:
    with pytest.raises(BadFile, match=says):
        load(lines(tmp_path / "a.jsonl", [ROWS[0], "", third, *ROWS]), Bytes())


def test_a_missing_key_names_those_there(tmp_path: Path) -> None:
    split = lines(tmp_path / "a.jsonl")
    with pytest.raises(
        UsageError, match=r"no key `labels`\nhint: did you mean `label`\? it has `text`, `other`, `label`"
    ):
        load(replace(split, y="labels"), Bytes())


@pytest.mark.parametrize(
    "content", [b"\x1f\x8b\x08broken", gzip.compress(b'{"text": 1}' * 99, mtime=0)[:-9], b'{"text": "\xff"}']
)
def test_damaged_lines_are_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(BadFile, match=r"a\.jsonl"):
        load_plain(Split("jsonl", tmp_path / "a.jsonl", ("text",)), Bytes())


# --- parquet and saved data sets -------------------------------------------------------------------------------


def encoded(picture: Any) -> bytes:
    import io

    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG")
    return sink.getvalue()


def test_parquet_columns_and_groups(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 3} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    split = Split("parquet", tmp_path / "a.parquet", ("text",), "label")
    labelled = load(split, Bytes())
    assert texts_of(labelled.items) == [row["text"] for row in rows]
    few = load(split, Bytes(), limit=17, seed=3)
    assert texts_of(few.items) == [rows[place]["text"] for place in few.items.indices]
    assert few.labels.tolist() == [rows[place]["label"] for place in few.items.indices]


def test_parquet_in_parts(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"text": f"text {part} {n}", "label": part} for n in range(part + 1)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{part}.parquet")
    labelled = load(Split("parquet", tmp_path, ("text",), "label"), Bytes())
    assert texts_of(labelled.items) == ["text 0 0", "text 1 0", "text 1 1", "text 2 0", "text 2 1", "text 2 2"]
    assert labelled.labels.tolist() == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_in_parquet(tmp_path: Path, struct: bool) -> None:
    x = pictures(5)
    stored = [{"bytes": encoded(one), "path": None} if struct else encoded(one) for one in x]
    pq.write_table(pa.table({"image": stored, "label": [0, 1, 2, 0, 1]}), tmp_path / "a.parquet")
    labelled = load(Split("parquet", tmp_path / "a.parquet", ("image",), "label"))
    assert torch.equal(labelled.items.inputs["pixels"], torch.from_numpy(x).permute(0, 3, 1, 2))


def test_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 50)
    with pytest.raises(BadFile, match="is no parquet file"):
        load(Split("parquet", tmp_path / "a.parquet", ("text",)), Bytes())
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"no column `texts`\nhint: did you mean `text`"):
        load(Split("parquet", tmp_path / "b.parquet", ("texts",)), Bytes())
    with pytest.raises(UsageError, match="names no column"):
        load(Split("parquet", tmp_path / "b.parquet"), Bytes())
    big = pa.table({"text": [f"{n}" * 50 for n in range(500)]})
    pq.write_table(big, tmp_path / "c.parquet", compression="zstd")
    raw = bytearray((tmp_path / "c.parquet").read_bytes())
    raw[40:200] = b"\x00" * 160
    (tmp_path / "c.parquet").write_bytes(raw)
    with pytest.raises(BadFile, match=r"c\.parquet: is damaged"):
        load_plain(Split("parquet", tmp_path / "c.parquet", ("text",)), Bytes())


def saved(folder: Path, order: Sequence[str] = ("no", "yes", "so")) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(order))})
    rows = [Image.fromarray(one) for one in pictures(4)]
    return datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 2, 0]}, features=features)


def test_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    saved(tmp_path).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": saved(tmp_path), "train": saved(tmp_path).select([2])}).save_to_disk(
        tmp_path / "many"
    )
    split = Split("datasets", tmp_path / "one", ("image",), "label", place="suite.yaml:1:1")
    labelled = load(split)
    assert torch.equal(labelled.items.inputs["pixels"], torch.from_numpy(pictures(4)).permute(0, 3, 1, 2))
    assert labelled.labels.tolist() == [0, 1, 2, 0]
    many = replace(split, location=tmp_path / "many")
    assert load(many).fingerprint == labelled.fingerprint  # the task's split is `test`, and so is one of the data set's
    assert len(load(replace(many, name="train"))) == 1
    with pytest.raises(UsageError, match=r"unknown split `trian`\nhint: did you mean `train`"):
        load(replace(many, name="trian"))
    with pytest.raises(UsageError, match=r"has no split `dev`\nhint: .*it has test, train"):
        load_labelled(task(many, dev=many), "dev", Squares(), LoadOptions(resolve=resolve))
    with pytest.raises(UsageError, match=r"no column `labels`"):
        load(replace(split, y="labels"))
    with pytest.raises(UsageError, match=r"names no column\nhint: such as `x: image`; it has image, label"):
        load(replace(split, x=()))


def turned(path: Path) -> bytes:
    """A picture that its camera says to turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures(1)[0]).save(path, "PNG", exif=exif)
    return path.read_bytes()


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_pictures_in_columns_are_upright_and_the_broken_are_named(tmp_path: Path, form: str) -> None:
    rows = [{"bytes": turned(tmp_path / "a.png"), "path": None}, {"bytes": b"\x89PNG\r\n\x1a\n", "path": None}]
    if form == "saved":
        datasets.Dataset.from_dict(
            {"image": rows, "label": [1, 2]},
            features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
        ).save_to_disk(tmp_path / "d")
        split = Split("datasets", tmp_path / "d", ("image",), "label")
    else:
        pq.write_table(pa.table({"image": rows, "label": [1, 2]}), tmp_path / "a.parquet")
        split = Split("parquet", tmp_path / "a.parquet", ("image",), "label")
    with pytest.raises(BadFile, match=r"(item|row) 1: cannot be decoded"):
        load(split)
    labelled = load(split, skip_bad=True)
    upright = torch.from_numpy(np.rot90(pictures(1)[0], -1).copy()).permute(2, 0, 1)
    assert torch.equal(labelled.items.inputs["pixels"], upright[None])
    assert labelled.labels.tolist() == [1]


def test_classes_of_a_data_set_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    saved(tmp_path, order=("yes", "so", "no")).save_to_disk(tmp_path / "one")
    told: list[str] = []
    labelled = load(Split("datasets", tmp_path / "one", ("image",), "label"), note=told.append)
    assert labelled.labels.tolist() == [1, 2, 0, 1]
    assert "in another order" in told[0]


def test_a_folder_that_is_no_saved_data_set(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is no saved data set"):
        load(Split("datasets", tmp_path, ("image",)))
    with pytest.raises(BadFile, match="no such folder"):
        load(Split("datasets", tmp_path / "none", ("image",)))


# --- arrays in any form ----------------------------------------------------------------------------------------


def stored_arrays(folder: Path, form: str, x: np.ndarray, y: np.ndarray) -> Split:
    """Pictures and maps as arrays: of an .npz file, or `datasets`' Array columns, saved or as parquet."""
    if form == "npz":
        return npz(folder / "a.npz", x=x, y=y)
    plain = datasets.List(datasets.List(datasets.List(datasets.Value(str(x.dtype)))))
    kind = plain if form == "plain lists" else datasets.Array3D(x.shape[1:], str(x.dtype))
    features = datasets.Features({"x": kind, "y": datasets.Array2D(y.shape[1:], str(y.dtype))})
    table = datasets.Dataset.from_dict({"x": list(x), "y": list(y)}, features=features)
    if form == "saved":
        table.save_to_disk(folder / "d")
        return Split("datasets", folder / "d", ("x",), "y")
    table.to_parquet(folder / "a.parquet")
    return Split("parquet", folder / "a.parquet", ("x",), "y")


@pytest.mark.parametrize("form", ["npz", "saved", "parquet", "plain lists"])
def test_pictures_and_maps_may_be_arrays_of_floats(tmp_path: Path, form: str) -> None:
    """As the public copy of NYUv2 is: float32 in [0, 1], channels first, and a class or a depth a pixel."""
    x = pictures(70)
    y = np.random.default_rng(0).integers(-1, 3, (70, 16, 16))
    split = stored_arrays(tmp_path, form, (x / 255).astype(np.float32).transpose(0, 3, 1, 2), y)
    labelled = load(split, kind="segmentation", limit=30)
    kept = labelled.items.indices.numpy()
    assert torch.equal(labelled.items.inputs["pixels"], torch.from_numpy(x[kept]).permute(0, 3, 1, 2))
    assert torch.equal(labelled.labels, torch.from_numpy(y[kept]))


@pytest.mark.parametrize("form", ["npz", "saved", "parquet"])
def test_values_that_are_no_picture_are_named(tmp_path: Path, form: str) -> None:
    x = np.zeros((3, 3, 16, 16), np.float32)
    x[1] -= 2.0
    split = stored_arrays(tmp_path, form, x, np.zeros((3, 16, 16), int))
    with pytest.raises(BadFile, match=r"(item|row) 1: cannot be decoded: a picture of float32 from -2.0 to -2.0, not"):
        load(split, kind="segmentation")
    assert len(load(split, kind="segmentation", skip_bad=True)) == 2


def test_lists_that_are_ragged_are_named(tmp_path: Path) -> None:
    rows = {"x": [[[1, 2], [3, 4]], [[1], [2, 3]], None], "y": [[[0, 1], [1, 0]], [[0], [1, 0]], [[0, 0]]]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    split = Split("parquet", tmp_path / "a.parquet", ("x",), "y")
    with pytest.raises(BadFile, match="row 1: label map cannot be decoded"):
        load(split, kind="segmentation")
    with pytest.raises(BadFile, match="row 1: cannot be decoded"):
        load_plain(replace(split, y=None), kind="segmentation")


# --- labels are out of reach -----------------------------------------------------------------------------------


def test_labels_that_were_not_asked_for_are_never_looked_at(tmp_path: Path) -> None:
    x = pictures(3)
    split = npz(tmp_path / "a.npz", x=x, y=np.array([9, -4, 77]))
    with pytest.raises(BadFile, match="outside the 3 classes"):
        load(split)
    for hidden in (split, replace(split, y="not there")):
        items = load_plain(hidden)
        assert torch.equal(items.inputs["pixels"], torch.from_numpy(x).permute(0, 3, 1, 2))
    lines(tmp_path / "b.jsonl", [{"text": "a"}, {"text": "b", "label": "?"}])
    texts = load_plain(Split("jsonl", tmp_path / "b.jsonl", ("text",), "label"), Bytes())
    assert texts_of(texts) == ["a", "b"]


def test_what_adaptation_gets_has_no_field_for_labels(tmp_path: Path) -> None:
    items = load_plain(npz(tmp_path / "a.npz", x=pictures(3), y=np.array([0, 1, 2])))
    assert type(items) is Items
    assert {one.name for one in fields(Items)} == {"inputs", "fingerprint", "indices", "skipped"}


def test_a_split_without_labels_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split `test` of task `birds` has no labels") as caught:
        load(npz(tmp_path / "a.npz", x=pictures(3)))
    assert caught.value.where == "suite.yaml:7:3"


def test_labels_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    prepare = Squares()
    with pytest.raises(BadFile, match="label 7 is outside"):
        load(npz(tmp_path / "a.npz", x=pictures(3), y=np.array([0, 1, 7])), prepare)
    assert not prepare.seen


def test_errors_of_preprocessing_pass_through(tmp_path: Path) -> None:
    class Refusing(Squares):
        def __call__(self, raw: Sequence[Any]) -> Any:
            raise Mismatch("texts for a backbone that sees pictures")

    with pytest.raises(Mismatch):
        load_plain(npz(tmp_path / "a.npz", x=pictures(300)), Refusing())
