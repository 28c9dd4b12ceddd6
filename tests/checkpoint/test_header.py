"""The header parser: what it reads, what it refuses and how it says so, and that it decides as the library does."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import entry, library_bytes, names, random_tensor, save, tensor_maps, write_raw
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from taskmerge.checkpoint.dtypes import CODES, DTYPES, is_float, itemsize
from taskmerge.checkpoint.header import MAX_DIMENSIONS, read_header
from taskmerge.errors import BadFile

GOOD = {"a": entry("U8", [2], 0, 2), "b": entry("F32", [1], 2, 6)}
DATA = bytes(6)

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=tensor_maps, metadata=st.dictionaries(names, names, max_size=3))
def test_reads_what_the_library_writes(tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    path = save(tmp_path / "x.safetensors", tensors, metadata)
    header = read_header(path)
    assert list(header.specs) == sorted(tensors)
    assert dict(header.metadata) == metadata
    content = path.read_bytes()
    for name, tensor in tensors.items():
        spec = header.specs[name]
        assert (spec.name, spec.dtype, spec.shape, spec.file) == (name, CODES[tensor.dtype], tensor.shape, path)
        assert spec.numel == tensor.numel()
        stored = content[spec.start : spec.start + spec.nbytes]
        assert stored == (bytes(tensor.untyped_storage()) if tensor.numel() else b"")


def changed(**changes: object) -> dict[str, Any]:
    return GOOD | {"a": GOOD["a"] | changes}


BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "no header": (b"", b"", "header is not JSON"),
    "not JSON": (b'{"a": ', b"", "header is not JSON"),
    "list": ([], b"", "not a JSON object"),
    "number": (b"12", b"", "not a JSON object"),
    "nan": (b'{"__metadata__": NaN}', b"", "NaN"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8 (byte 2)"),
    "lone surrogate": (b'{"__metadata__": {"\\ud800": "x"}}', b"", "lone surrogate"),
    "zeros after JSON": (b"{}\0\0", b"", "header is not JSON"),
    "too deep": (b'{"__metadata__":{},"a":' + b"[" * 500 + b"]" * 500 + b"}", b"", "nested too deeply"),
    "deeper than the stack": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "header is"),
    "endless number": (b'{"a":' + b"1" * 9999 + b"}", b"", "header is not JSON"),
    "tensor twice": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b"", "key `a` twice"),
    "field twice": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", "`dtype` twice"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b"", "`__metadata__` twice"),
    "metadata list": ({"__metadata__": []}, b"", "__metadata__ is not a map"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not a map"),
    "entry list": ({"a": ["U8", [2], [0, 2]]}, DATA, "`a`: entry is not an object"),
    "entry null": ({"a": None}, DATA, "`a`: entry is not an object"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 2]}}, DATA, "`a`: entry lacks dtype"),
    "endless shape": (changed(shape=[1.5] * 9999), DATA, "`a`: shape [1.5, 1.5"),
    "empty entry": ({"a": {}}, DATA, "`a`: entry lacks dtype, shape, data_offsets"),
    "unknown dtype": (changed(dtype="F31"), DATA, '`a`: unknown dtype "F31"'),
    "dtype number": (changed(dtype=3), DATA, "`a`: unknown dtype 3"),
    "dtype list": (changed(dtype=["U8"]), DATA, "`a`: unknown dtype"),
    "negative side": (changed(shape=[-2]), DATA, "`a`: shape [-2]"),
    "float side": (changed(shape=[2.0]), DATA, "`a`: shape [2.0]"),
    "bool side": (changed(shape=[True, 2]), DATA, "`a`: shape [true, 2]"),
    "text side": (changed(shape=["2"]), DATA, "`a`: shape"),
    "shape number": (changed(shape=2), DATA, "`a`: shape 2"),
    "huge side": (changed(shape=[2**70]), DATA, "`a`: shape"),
    "dimensions": (changed(shape=[2] + [1] * MAX_DIMENSIONS), DATA, f"`a`: has {MAX_DIMENSIONS + 1} dimensions"),
    "65 dimensions": (changed(shape=[1] * 64 + [2]), DATA, "`a`: has 65 dimensions"),
    "too deep in a field": (b'{"a":{"x":' + b"[" * 500 + b"]" * 500 + b"}}", b"", "nested too deeply"),
    "deep shape": (
        b'{"a":{"dtype":"U8","shape":' + b"[" * 300 + b"]" * 300 + b',"data_offsets":[0,2]}}',
        DATA,
        "`a`: shape",
    ),
    "lone surrogate in a field": (
        b'{"a":{"dtype":"\\ud800","shape":[2],"data_offsets":[0,2]}}',
        DATA,
        "lone surrogate",
    ),
    "overflow": (changed(shape=[2**40, 2**40]), DATA, "is too large"),
    "overflow to nothing": (changed(shape=[2**40, 2**40, 0]), DATA, "is too large"),
    "overflow of bytes": (changed(dtype="F64", shape=[2**61]), DATA, "is too large"),
    "offset missing": (changed(data_offsets=[0]), DATA, "`a`: data_offsets [0]"),
    "three offsets": (changed(data_offsets=[0, 2, 2]), DATA, "`a`: data_offsets"),
    "negative offset": (changed(data_offsets=[-2, 0]), DATA, "`a`: data_offsets"),
    "minus zero": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', bytes(2), "`a`: data_offsets"),
    "float offset": (changed(data_offsets=[0, 2.0]), DATA, "`a`: data_offsets"),
    "reversed offsets": (changed(data_offsets=[2, 0]), DATA, "`a`: offsets [2, 0] span -2 bytes"),
    "size not shape": (changed(shape=[3]), DATA, "`a`: offsets [0, 2] span 2 bytes, U8 [3] needs 3"),
    "overlap": (
        {"a": entry("U8", [4], 0, 4), "b": entry("F32", [1], 2, 6)},
        DATA,
        "`b`: data_offsets start at 2: over",
    ),
    "hole": ({"a": entry("U8", [1], 0, 1), "b": entry("F32", [1], 2, 6)}, DATA, "leaves a hole before it"),
    "hole at the start": ({"b": entry("F32", [1], 2, 6)}, DATA, "leaves a hole before it"),
    "out of range": ({"a": entry("U8", [2], 0, 2), "b": entry("F32", [9], 2, 38)}, DATA, "`b`: data end at byte"),
    "truncated": (GOOD, DATA[:-1], "`b`: data end at byte"),
    "bytes left over": (GOOD, DATA + b"x", "1 bytes follow the last tensor"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_refused_by_name(tmp_path: Path, case: str) -> None:
    header, data, words = BAD_HEADERS[case]
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(BadFile) as caught:
        read_header(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint == "the file is damaged: download or copy it again"
    assert caught.value.exit_code == 3
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(("code", "shape"), [("F4", [4]), ("F6_E2M3", [8]), ("F6_E3M2", [8])])
def test_types_below_a_byte_are_not_supported_and_not_called_damaged(
    tmp_path: Path, code: str, shape: list[int]
) -> None:
    size = {"F4": 2, "F6_E2M3": 6, "F6_E3M2": 6}[code]
    path = write_raw(tmp_path / "packed.safetensors", {"a": entry(code, shape, 0, size)}, bytes(size))
    assert library_accepts(path)
    with pytest.raises(BadFile, match=f"`a`: dtype {code} is not supported") as caught:
        read_header(path)
    assert "quantised" in str(caught.value.hint)
    assert "damaged" not in caught.value.message


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty (0 bytes)"),
    "five bytes": (b"hello", "too short for safetensors (5 bytes)"),
    "text": (b"just some text\nin a file\n", "is a text file, not safetensors"),
    "json": (b'{"weight_map": {"a": "b"}}', "is a text file, not safetensors"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08rest", "--allow-pickle"),
    "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "--allow-pickle"),
    "gguf": (b"GGUF\x03\x00\x00\x00rest of it", "is a GGUF file"),
    "length beyond the file": (struct.pack("<Q", 99) + b"{}", "header length 99 reaches beyond the end"),
    "length above the limit": (struct.pack("<Q", 2**63) + b"{}", "above the limit"),
    "length alone": (struct.pack("<Q", 2), "header length 2 reaches beyond the end"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_safetensors(tmp_path: Path, case: str) -> None:
    content, words = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_header(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in [
        (tmp_path / "absent.safetensors", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "loop", "cannot be opened"),
        (tmp_path / "a\0b", "cannot be opened"),
    ]:
        with pytest.raises(BadFile, match=words):
            read_header(path)


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path / "x.safetensors", GOOD, DATA)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadFile, match=r"x\.safetensors: cannot be opened: Permission denied"):
        read_header(path)


def test_a_header_whose_length_starts_like_another_format_is_read(tmp_path: Path) -> None:
    # 60 is `<` and 0x0280 starts a pickle: neither makes the file a web page or a pickle.
    for length in (60, 0x280):
        path = write_raw(tmp_path / "x.safetensors", b"{}".ljust(length))
        assert not read_header(path).specs


def test_only_the_header_is_read(tmp_path: Path) -> None:
    size = 2**40
    text = json.dumps({"a": entry("U8", [size], 0, size)}).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    assert read_header(path).specs["a"].nbytes == size


def library_accepts(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return True
    except Exception:
        return False


STRICTER = (
    " twice",  # the format forbids duplicate keys, the library lets them pass
    "entry is not an object",  # a list of the three fields passes there
    "is not supported",  # types below a byte
    " dimensions, more than",  # the library takes any number
    "unknown dtype {",  # serde's other way to write an enum
)


def check_same_decision(path: Path) -> None:
    refused = None
    try:
        read_header(path)
    except BadFile as error:
        refused = error.message
    if library_accepts(path):
        assert refused is None or any(words in refused for words in STRICTER), refused
    else:
        assert refused, path.read_bytes()


@fuzz
@given(data=st.data(), tensors=tensor_maps)
def test_flipped_bytes_are_judged_as_by_the_library(
    tmp_path: Path, data: st.DataObject, tensors: dict[str, Any]
) -> None:
    content = bytearray(library_bytes(tensors, {"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from(b'0123456789{}[]:,"\\ -.eE\xff\x00\x80au'))
    cut = data.draw(st.sampled_from([None, None, None, -1, len(content) // 2]))
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content[:cut])
    check_same_decision(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
sizes = st.integers(-1, 6) | st.sampled_from([True, 2.0, 2**31, 2**63 - 1, 2**64, None, "1"])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", "F6_E2M3", "f32", "", None, 1]) | st.just("U8"),
        "shape": st.lists(sizes, max_size=3) | st.just([2]),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | st.sampled_from([[0, 2], [2, 4], [0], [0, 0, 0]]),
    },
    optional={"extra": json_values},
)


@fuzz
@given(
    header=st.dictionaries(names, entries | entries | json_values, max_size=3),
    metadata=st.none() | st.dictionaries(names, names, max_size=2) | json_values,
    size=st.integers(0, 8),
)
@example(header={"a": entry("U8", [2], 0, 2), "b": entry("U8", [0], 0, 0)}, metadata=None, size=2)
@example(header={"a": entry("U8", [0], 2, 2), "b": entry("U8", [2], 0, 2)}, metadata={}, size=2)
def test_made_up_headers_are_judged_as_by_the_library(
    tmp_path: Path, header: dict[str, Any], metadata: object, size: int
) -> None:
    full = {"__metadata__": metadata, **header} if metadata is not None else header
    check_same_decision(write_raw(tmp_path / "fuzz.safetensors", full, bytes(size)))


def test_dtype_tables_agree_with_torch() -> None:
    for code, dtype in DTYPES.items():
        assert CODES[dtype] == code
        assert itemsize(code) == random_tensor(code, (1,), 0).element_size()
        assert is_float(code) == dtype.is_floating_point
    assert {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"} <= set(DTYPES)
