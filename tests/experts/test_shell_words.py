"""Words of proposed commands, read back by the shells that people have."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.experts import shell_words as words

SHELL = shutil.which("bash") or "bash"
SAY = "import os, sys; sys.stdout.buffer.write(b'|'.join(map(os.fsencode, sys.argv[1:])))"
PRINT = f"{shlex.join([sys.executable, '-c', SAY])} "
TEXTS = st.text(st.characters(exclude_characters="\0|", exclude_categories=("Cs",)), max_size=20)


def as_read(text: str) -> list[str]:
    done = subprocess.run([SHELL, "-c", PRINT + text], capture_output=True, check=True)
    return done.stdout.decode().split("|")


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_shell_reads_every_word_as_it_was(texts: list[str]) -> None:
    assert as_read(" ".join(map(words.quote, texts))) == texts
    assert all(map(str.isprintable, map(words.quote, texts)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=9))
def test_lines_are_one_command_within_eighty_columns(groups: list[list[str]]) -> None:
    lines = words.lines(groups)
    assert as_read("\n".join(lines)) == [text for group in groups for text in group]
    longest = max(len(" ".join(map(words.quote, group))) for group in groups)
    assert all(len(line) <= max(words.WIDE, longest + 4) for line in lines)


def test_keywords_become_options() -> None:
    given = {
        "exclude": ("a", "b"), "base": Path("-x"), "method": "cart", "keep_from": (("base", "lm_head.*"),),
        "allow_merged": True, "on_missing": "base", "map": (), "heads": "",
    }  # fmt: skip
    assert words.options(given) == [
        ["--method", "cart"], ["--base", "./-x"], ["--allow-merged"], ["--exclude", "a"], ["--exclude", "b"],
        ["--keep-from", "base", "lm_head.*"], ["--on-missing", "base"],
    ]  # fmt: skip


@pytest.mark.parametrize(("path", "word"), [("a/b", "a/b"), ("-o", "./-o"), ("~/a", "./~/a"), ("/~a", "/~a")])
def test_paths_are_no_options_and_no_homes(path: str, word: str) -> None:
    assert words.path_word(Path(path)) == word
