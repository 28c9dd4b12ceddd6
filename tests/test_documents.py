"""The door for small documents: JSON within limits, regular files, and errors that are texts of bounded length."""

import gzip
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.documents import DEEPEST, check_unpacked, parse_json, read_json, read_object, read_regular
from taskmerge.errors import LONGEST_LINE, MOST_LINES, BadFile, UsageError, nearest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_json_is_read_as_it_was_written(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == value, "a byte order mark is no part of the text"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:\\ud80 0123456789eE+-.truefalsn\n'), max_size=40))
def test_anything_else_is_one_kind_of_error(content: str | bytes) -> None:
    with suppress(ValueError):
        parse_json(content)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "the key `a` stands twice"),
        ('[{"b": {"a": 1, "c": 2, "a": 1}}]', "the key `a` stands twice"),
        ("1" + "0" * 400, "beyond all range"),
        ("-1" + "0" * 308 + "0", "beyond all range"),
        ("9" * 10_000, "beyond all range"),
        ("1e400", "beyond all range"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('["\\ud800"]', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than"),
        ('{"a":' * 200_000, "nested more than"),
        (b"\xff", "no UTF-8 at byte 0"),
        ("", "line 1, column 1"),
    ],
)
def test_what_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_a_hundred_levels_are_fine() -> None:
    parse_json("[" * DEEPEST + "]" * DEEPEST)


def test_configurations_of_models_have_infinities(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "model_max_length": 1' + "0" * 30 + "}")
    assert read_object(tmp_path / "config.json", constants=True)["time_step_limit"] == [0.0, float("inf")]
    with pytest.raises(BadFile, match=r"config\.json: is not JSON: Infinity"):
        read_object(tmp_path / "config.json")


def test_only_regular_files_of_a_stated_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"[" + b" " * 1000 + b"]")
    for name, says in {
        "pipe": "not a regular file", "loop": "cannot be opened", "to_zero": "not a regular file", ".": "is a folder",
        "none": "no such file", "a\0b": "cannot be opened",
    }.items():  # fmt: skip
        with pytest.raises(BadFile, match=says):
            read_json(tmp_path / name)
    assert read_regular(tmp_path / "large", 1002) == (tmp_path / "large").read_bytes()
    with pytest.raises(BadFile, match="larger than"):
        read_regular(tmp_path / "large", 1001)


def test_what_is_gzipped_has_a_size_too(tmp_path: Path) -> None:
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 1000))
    check_unpacked(path, 1000)
    with pytest.raises(BadFile, match="expands to more than"):
        check_unpacked(path, 999)
    for content in (b"", b"text", path.read_bytes()[:-5], path.read_bytes()[:12] + b"x" * 8):
        path.write_bytes(content)
        if content:
            with pytest.raises(BadFile, match="is damaged"):
                check_unpacked(path)


@settings(deadline=None)
@given(st.text(max_size=100), st.integers(0, 10**5), st.text(max_size=20))
def test_errors_are_texts_of_bounded_length(text: str, times: int, other: str) -> None:
    error = UsageError(text * times + other, where=text * 1000, hint=text * 1000)
    assert len(error.message) < 3 * (MOST_LINES + 1) * 10 * (LONGEST_LINE + 40)
    assert all(line.isprintable() for line in error.message.split("\n"))
    assert error.message.count("\n") <= 3 * MOST_LINES + 1


def test_both_ends_of_a_long_line_stay() -> None:
    error = UsageError(f"`{'x' * 10**6}` is no number")
    assert error.what.startswith("`xxx")
    assert error.what.endswith("is no number")
    assert len(error.what) < LONGEST_LINE + 40
    assert UsageError("\n".join(map(str, range(1000)))).what.endswith(f"\nand {1000 - MOST_LINES} lines more")


def test_nothing_is_near_to_a_name_of_a_megabyte() -> None:
    assert nearest("x" * 10**6, ["x" * 10]) is None
