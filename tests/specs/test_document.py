"""The door for YAML: whatever a file holds, it is read in a moment, or refused with its place."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.document import LARGEST, MOST_REPEATED, read_document, read_value


def read(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read_document(path, "recipe", "write a good one").values


def refused(folder: Path, text: str) -> UsageError | None:
    try:
        read(folder, text)
    except UsageError as error:
        return error
    return None


def laughs(levels: int, width: int, brackets: str = "[]") -> str:
    """Each line is an alias to the one before, many times over."""
    inner = (lambda name: ", ".join([name] * width)) if brackets == "[]" else None
    lines = [
        f"k0: &k0 {brackets[0]}{inner('x') if inner else ', '.join(f'a{n}: x' for n in range(width))}{brackets[1]}"
    ]
    for level in range(1, levels):
        above = f"*k{level - 1}"
        value = inner(above) if inner else ", ".join(f"a{n}: {above}" for n in range(width))
        lines.append(f"k{level}: &k{level} {brackets[0]}{value}{brackets[1]}")
    return "\n".join(lines) + "\n"


PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN | st.text(max_size=20).filter(str.isprintable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxz", min_size=1), inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(document=st.dictionaries(st.text("abcxz", min_size=1), VALUES))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    text = yaml.safe_dump(document, allow_unicode=True)
    found = read(tmp_path_factory.mktemp("yaml"), text)
    assert found == yaml.safe_load(text)


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from("ab:-?*&!|>'\"[]{}#%@,.0123456789~=<\\\n\t \x1b\xe9\ud800"), max_size=40)
    | st.text(max_size=60)
)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    error = refused(tmp_path_factory.mktemp("yaml"), text)
    assert error is None or "some.yaml" in str(error.where)
    assert error is None or len(error.message) < 10_000


@pytest.mark.parametrize(
    "tag", ["int", "float", "bool", "null", "binary", "timestamp", "set", "omap", "pairs", "merge"]
)
@pytest.mark.parametrize("value", ["x", "''", "[a]", "{a: b}", "-", "1:", "é", "~", "0b_", "2001-99-99"])
def test_a_tag_that_lies_is_refused_or_harmless(tmp_path: Path, tag: str, value: str) -> None:
    text = f"k: !!{tag} {value}\n"
    error = refused(tmp_path, text)
    if error is not None:
        assert ".yaml:1:" in str(error.where)
    else:
        assert isinstance(read(tmp_path, text)["k"], int | float | bool | bytes | str | None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (laughs(10, 9), "aliases stand for more than"),
        (laughs(9, 9, "{}"), "aliases stand for more than"),
        ("a: &x [*x]\n", "it holds itself"),
        ("a: &x {b: *x}\n", "it holds itself"),
        ("x0: &x0 [a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}]\n" for n in range(1, 3000)), "nested more than"),
        ("k: " + "[" * 100_000, "no YAML"),
        ("k: " + "{a: " * 300 + "1" + "}" * 300, "nested more than"),
        ("? " * 500 + "a", "a key is a text"),
        ("? [a, b]\n: x\n", "a key is a text"),
        ("k: 1" + "0" * 400 + "\n", "beyond all range"),
        ("k: -1" + "0" * 5000 + "\n", "beyond all range"),
        ("k: 1.0e+999\n", "beyond all range"),
        ("k: .inf\n", "beyond all range"),
        ("k: .nan\n", "beyond all range"),
        ("k: !!python/object/apply:os.system ['touch PWNED']\n", "is not known"),
        ("k: !!python/name:os.system\n", "is not known"),
        ('k: "\\ud800"\n', "no YAML|half a character"),
        ("k: 1\nk: 2\n", "stands twice"),
        ("<<: {a: 1}\n", "cannot be read"),
    ],
)
def test_traps_are_refused_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    start = time.process_time()
    with pytest.raises(UsageError, match=says) as caught:
        read(tmp_path, text)
    assert "some.yaml:" in str(caught.value.where)
    assert len(caught.value.message) < 10_000
    assert time.process_time() - start < 5


def test_aliases_that_stay_few_are_fine(tmp_path: Path) -> None:
    assert read(tmp_path, laughs(3, 3))["k2"] == [[["x"] * 3] * 3] * 3
    many = "a: &a [" + ", ".join(["x"] * 1000) + "]\nb: [" + ", ".join(["*a"] * (MOST_REPEATED // 1001)) + "]\n"
    assert len(read(tmp_path, many)["b"]) == MOST_REPEATED // 1001


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{n}: value\n" for n in range(600_000)),
        "k:\n" + "- abcdefgh\n" * 900_000,
        "k: a\n" + "# comment\n" * 1_000_000,
        "k: " + "x" * 10_000_000 + "\n",
        "k: '" + "x\n" * 5_000_000 + "'\n",
    ],
    ids=["keys", "list", "comments", "value", "quotes"],
)  # fmt: skip
@pytest.mark.slow
def test_ten_megabytes_are_read_in_seconds(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    assert read(tmp_path, text)
    assert time.process_time() - start < 15


def test_more_than_the_limit_is_not_even_looked_at(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="larger than the 16 MiB"):
        read(tmp_path, b"#" * (LARGEST + 1))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, says in (("pipe", "not a regular file"), ("loop", "cannot be opened"), (".", "is a folder")):
        with pytest.raises(BadFile, match=says):
            read_document(tmp_path / name, "recipe", "")
    with pytest.raises(BadFile, match="not a regular file"):
        read_document(Path("/dev/zero"), "recipe", "")


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("true", True), ("", None), ("a b", "a b"), ("'1'", "1")])
def test_a_value_of_the_command_line(text: str, value: object) -> None:
    assert read_value(text, "--set seed") == value


@pytest.mark.parametrize(
    "text", ["[1]", "{", "a: b", "*x", "!!python/name:os", "1e999", "9" * 5000, "\ud800", "!!int x"]
)
def test_what_is_no_value_of_the_command_line(text: str) -> None:
    if text == "1e999":  # without a point it is a text to YAML
        assert read_value(text, "--set seed") == text
        return
    with pytest.raises(UsageError, match="--set seed"):
        read_value(text, "--set seed")
