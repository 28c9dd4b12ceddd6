"""What a merge is told, as words of a command line that a shell takes as they stand."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.weights import default_name
from taskmerge.experts.sources import Source

WIDE = 80
FIRST = ("method", "base")
"""Options that come first; the others follow in the order of the alphabet."""


def options(keywords: Mapping[str, Any]) -> list[list[str]]:
    """Keywords of `merge` as its options, each with its values; what is not set is left out."""
    order = sorted((name for name, value in keywords.items() if value), key=lambda name: (_place(name), name))
    return [words for name in order for words in _option(f"--{name.replace('_', '-')}", keywords[name])]


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _option(flag: str, value: Any) -> list[list[str]]:
    """An option that is said once, or once for each of its values."""
    if value is True:
        return [[flag]]
    if isinstance(value, tuple):
        return [[flag, *(one if isinstance(one, tuple) else (one,))] for one in value]
    return [[flag, path_word(value) if isinstance(value, Path) else str(value)]]


def flags(keywords: Mapping[str, Any]) -> str:
    """Options as text for a shell."""
    return " ".join(quote(word) for words in options(keywords) for word in words)


def input_word(expert: Source) -> str:
    """An expert as an argument: its path, with its name where the path does not say it."""
    path = Path(expert.where)
    own = default_name(path) if expert.record.get("kind") not in ("vector", "factors") else expert.record.get("task")
    word = path_word(path)
    return word if expert.task == own else f"{expert.task}={path}"


def path_word(path: Path) -> str:
    """A path that no program takes for an option, and no shell for somebody's home."""
    text = str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


def quote(word: str) -> str:
    """A word for a shell: as it is, in quotes, or (control characters, as bash and zsh read them) with escapes."""
    if word.isprintable():
        return shlex.quote(word)
    signs = ("\\" + sign if sign in "\\'" else sign if sign.isprintable() else _escaped(sign) for sign in word)
    return f"$'{''.join(signs)}'"


def _escaped(sign: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogateescape"))


def lines(groups: Iterable[Iterable[str]], indent: str = "") -> list[str]:
    """A command in lines that fit 80 columns where its words do: each but the last goes on behind a backslash.

    Words of one group stand together.
    """
    found, line = list[str](), indent
    for group in groups:
        text = " ".join(map(quote, group))
        if line.strip() and len(line) + len(text) + 3 > WIDE:
            found.append(f"{line} \\")
            line = f"{indent}  "
        line += text if not line.strip() else f" {text}"
    return [*found, line]
