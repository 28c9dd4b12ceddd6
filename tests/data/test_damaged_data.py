"""Data as they lie on real disks: flipped, cut, encrypted, lying about their size, bombs, loops and pipes."""

import gzip
import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import Bytes, Squares, load, load_plain
from PIL import Image

from taskmerge import documents
from taskmerge.data.data_headers import size_of
from taskmerge.errors import BadFile, TaskmergeError
from taskmerge.specs.suite import Split

PICTURES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def tried(split: Split, prepare: Any = None) -> Any:
    """What a split gives, or the error with which it is refused: the only one that is let through."""
    try:
        size_of(split, "test")
        return load(split, prepare)
    except TaskmergeError as error:
        return error


def written_npz(path: Path, compressed: bool, **members: Any) -> Split:
    (np.savez_compressed if compressed else np.savez)(path, **(members or {"x": PICTURES, "y": LABELS}))
    return Split("npz", path, ("x",), "y")


def member(header: bytes, numbers: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + numbers


def header_of(shape: object, descr: str = "|u1", order: object = False) -> bytes:
    return repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b" " * 20 + b"\n"


def archive(path: Path, x: bytes, method: int = zipfile.ZIP_STORED) -> Split:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", x)
    return Split("npz", path, ("x",), None)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_bit_of_an_archive_is_noticed_or_changes_nothing(tmp_path: Path, compressed: bool) -> None:
    split = written_npz(tmp_path / "a.npz", compressed)
    whole = load(split)
    raw, chance = (tmp_path / "a.npz").read_bytes(), random.Random(1)
    for _ in range(250):
        damaged = bytearray(raw)
        damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        (tmp_path / "a.npz").write_bytes(damaged)
        found = tried(split)
        if not isinstance(found, TaskmergeError):
            assert found.items.fingerprint == whole.items.fingerprint
            assert found.labels.tolist() == whole.labels.tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_cut_anywhere_is_refused(tmp_path: Path, compressed: bool) -> None:
    split = written_npz(tmp_path / "a.npz", compressed)
    raw, chance = (tmp_path / "a.npz").read_bytes(), random.Random(2)
    for length in [0, 1, 4, 30, *(chance.randrange(len(raw)) for _ in range(40))]:
        (tmp_path / "a.npz").write_bytes(raw[:length])
        assert isinstance(tried(split), BadFile), length


BAD_MEMBERS = {
    "empty": b"", "no magic": b"x" * 200,
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
    "no header": b"\x93NUMPY\x01\x00",
    "header too long": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(100),
    "header is no Python": member(b"{'descr': \n", b""),
    "header is a call": member(b"__import__('os').getcwd()\n", b""),
    "header is deep": member(b"(" * 9000 + b"\n", b""), "header is a list": member(b"[1]\n", b""),
    "negative": member(header_of((-12, 8, 8, 3)), PICTURES.tobytes()),
    "two negatives": member(header_of((-12, -8, 8, 3)), PICTURES.tobytes()),
    "2^62": member(header_of((2**62, 8, 8, 3)), PICTURES.tobytes()),
    "beyond 64 bits": member(header_of((2**70, 8, 8, 3)), PICTURES.tobytes()),
    "too large": member(header_of((13, 8, 8, 3)), PICTURES.tobytes()),
    "too small": member(header_of((11, 8, 8, 3)), PICTURES.tobytes()),
    "text as shape": member(header_of("x"), PICTURES.tobytes()),
    "65 dimensions": member(header_of((12, 8, 8, 3) + (1,) * 61), PICTURES.tobytes()),
    "huge type": member(header_of((1,), "<U2000000000"), b"x"),
    "no type": member(header_of((12,), "|x9"), bytes(12)),
    "objects": member(header_of((12,), "|O"), bytes(96)),
    "order": member(header_of((12, 8, 8, 3), "|u1", "x"), bytes(9)),
}  # fmt: skip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("what", BAD_MEMBERS)
def test_headers_that_lie(tmp_path: Path, what: str, method: int) -> None:
    split = archive(tmp_path / "a.npz", BAD_MEMBERS[what], method)
    with pytest.raises(BadFile, match=r"a\.npz: `x`"):
        load_plain(split)
    with pytest.raises(BadFile, match=r"a\.npz: `x`"):
        size_of(split, "test")


def test_archives_that_cannot_be_opened(tmp_path: Path) -> None:
    split = archive(tmp_path / "a.npz", member(header_of((12, 8, 8, 3)), PICTURES.tobytes()))
    assert len(load_plain(split).indices) == 12
    raw = (tmp_path / "a.npz").read_bytes()
    local, central = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    for (offset, value), says in {(6, 1): "encrypted", (8, 97): "compression"}.items():
        damaged = bytearray(raw)
        damaged[local + offset], damaged[central + offset + 2] = value, value
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(BadFile, match=says):
            load_plain(split)


def bomb(path: Path, form: str) -> Split:
    """A file of a few MB that expands beyond the limit."""
    count = documents.EXPANDED // 192 + 1
    if form == "npz":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
            file.open("x.npy", "w", force_zip64=True) as sink,
        ):
            sink.write(member(header_of((count, 8, 8, 3)), b""))
            for _ in range(0, count * 192, 1 << 20):
                sink.write(bytes(1 << 20))
        return Split("npz", path, ("x",))
    with gzip.open(path, "wb", compresslevel=9) as file:
        line = b"{}" if form == "one line" else json.dumps({"text": "a" * 500}).encode() + b"\n"
        for _ in range(documents.EXPANDED // 100_000 + 2):
            file.write(line * (100_000 // len(line) + 1))
    return Split("jsonl", path, ("text",))


@pytest.mark.parametrize("form", ["npz", "lines", "one line"])
def test_bombs_are_refused_at_a_stated_size(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "EXPANDED", 48 << 20)
    split = bomb(tmp_path / ("a.npz" if form == "npz" else "a.jsonl.gz"), form)
    with pytest.raises(BadFile, match=r"expands to more than 0\.0469 GiB|is not JSON"):
        load_plain(split, Bytes())


def test_a_gzipped_file_cut_or_flipped_is_refused_or_the_same(tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"text": f"row {n}", "label": n % 3}).encode() + b"\n" for n in range(50))
    raw, chance = gzip.compress(rows, mtime=0), random.Random(3)
    split = Split("jsonl", tmp_path / "a.jsonl.gz", ("text",), "label")
    (tmp_path / "a.jsonl.gz").write_bytes(raw)
    whole = load(split, Bytes())
    for _ in range(150):
        damaged = bytearray(raw)
        if chance.random() < 0.5:
            del damaged[chance.randrange(1, len(raw)) :]
        else:
            damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        found = tried(split, Bytes())
        assert isinstance(found, TaskmergeError) or found.items.fingerprint == whole.items.fingerprint


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert load(Split("jsonl", tmp_path / "a.jsonl", ("text",), "label"), Bytes()).labels.tolist() == [0, 1]


ROWS = ("[" * 5000, '{"text": 1' + "0" * 5000 + "}", '{"text": "a", "text": "b"}', '{"text": "\\ud800"}')


@pytest.mark.parametrize("row", ROWS)
def test_rows_that_are_traps(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + row + "\n")
    with pytest.raises(BadFile, match=r"a\.jsonl:2: is not JSON"):
        load_plain(Split("jsonl", tmp_path / "a.jsonl", ("text",)), Bytes())


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_tables_with_flipped_bits_are_refused_or_read(tmp_path: Path, form: str) -> None:
    columns = {"text": [f"row {n}" * (n % 5) for n in range(40)], "label": [n % 3 for n in range(40)]}
    if form == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), file, row_group_size=16, compression="none")
        split = Split("parquet", file, ("text",), "label")
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
        (file,) = (tmp_path / "saved").glob("*.arrow")
        split = Split("datasets", tmp_path / "saved", ("text",), "label")
    raw, chance = file.read_bytes(), random.Random(4)
    load(split, Bytes())
    for _ in range(120):
        damaged = bytearray(raw)
        damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        tried(split, Bytes())


DOCUMENTS = ("", "[]", "{}", "[" * 9999, *(f'{{"_data_files": {x}}}' for x in ("5", "[5]", '[{"filename": 1}]')))


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", DOCUMENTS)
def test_documents_of_saved_data_sets(tmp_path: Path, name: str, content: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / name).write_text(content)
    split = Split("datasets", tmp_path / "saved", ("text",), "label")
    found = tried(split, Bytes())
    assert isinstance(found, BadFile) or name == "dataset_info.json"
    (tmp_path / "saved" / name).unlink()
    os.mkfifo(tmp_path / "saved" / name)
    assert "not a regular file" in str(tried(split, Bytes()))


def test_splits_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["."]}')
    assert "no dataset_info.json" in str(tried(Split("datasets", tmp_path, ("text",), "label"), Bytes()))


# --- pictures --------------------------------------------------------------------------------------------------


def encoded(form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(sink, form, **options)
    return sink.getvalue()


def huge_png(side: int) -> bytes:
    """A small file that says it has side² black pixels, and has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def folders(path: Path, content: bytes, ending: str) -> Split:
    for name in ("no", "yes", "so"):
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name / "good.png").write_bytes(encoded("PNG"))
    (path / "no" / f"bad{ending}").write_bytes(content)
    return Split("images", path, (), "label")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_pictures_cut_or_flipped_are_named_or_read(tmp_path: Path, form: str) -> None:
    raw, chance = encoded(form), random.Random(form)
    for _ in range(40):
        damaged = bytearray(raw)
        if chance.random() < 0.4:
            del damaged[chance.randrange(len(raw)) :]
        for _ in range(3):
            if damaged:
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        found = tried(folders(tmp_path / "f", bytes(damaged), ".png"))
        assert not isinstance(found, TaskmergeError) or (isinstance(found, BadFile) and "bad.png" in str(found))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_named_before_it_is_decoded(tmp_path: Path) -> None:
    split = folders(tmp_path / "f", huge_png(13_000), ".png")
    with pytest.raises(BadFile, match=r"bad\.png: cannot be decoded: 13,000 x 13,000 pixels are more than"):
        load(split)
    assert load(split, skip_bad=True).items.skipped == 1


def test_large_pictures_are_prepared_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.data import decoding

    x = np.repeat(PICTURES, 2, axis=0)
    split = written_npz(tmp_path / "a.npz", False, x=x)
    whole = load_plain(Split("npz", tmp_path / "a.npz", ("x",)))
    monkeypatch.setattr(decoding, "PIXELS_HELD", 3 * 64)
    few = Squares()
    found = load_plain(Split("npz", tmp_path / "a.npz", ("x",)), few)
    assert max(few.seen) == 4
    assert found.fingerprint == whole.fingerprint
    assert bool((found.inputs["pixels"] == whole.inputs["pixels"]).all())
    assert split.form == "npz"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, loop, endless])
@pytest.mark.parametrize("form", ["npz", "jsonl", "parquet"])
def test_only_regular_files_are_read(tmp_path: Path, form: Any, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    found = tried(Split(form, tmp_path / "a", ("x",), "y"), Bytes())
    assert isinstance(found, BadFile)
    assert any(says in str(found) for says in ("not a regular file", "cannot be opened", "no such file"))


@pytest.mark.parametrize("make", [pipe, loop, endless])
def test_a_picture_that_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    split = folders(tmp_path / "f", b"", ".txt")
    make(tmp_path / "f" / "no" / "bad.png")
    found = tried(split)
    assert isinstance(found, BadFile)
    assert "bad.png" in str(found)


def test_class_folders_that_link_to_themselves_are_refused(tmp_path: Path) -> None:
    split = folders(tmp_path / "f", encoded("PNG"), ".png")
    (tmp_path / "f" / "no" / "again").symlink_to("..")
    found = tried(split)
    assert isinstance(found, BadFile)
    assert "links to a folder that holds it" in str(found)
    (tmp_path / "f" / "no" / "again").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.png").write_bytes(encoded("PNG"))
    (tmp_path / "f" / "no" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "f" / "yes" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(tried(split).labels) == 6
