"""Values as people write them: sizes, counts, names, weights. `where` is the option that a complaint names."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskmerge.errors import UsageError

MOST_THREADS, MOST_ITEMS = 100_000, 2**63 - 1
POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str, where: str) -> int:
    """The bytes of `700M`, `1.5GB`, `2GiB` or a plain number; `UsageError` where there is none of them."""
    short = text.strip().lower().removesuffix("b")
    number = short.rstrip("kmgti")
    with suppress(ValueError, KeyError, OverflowError):
        size = int(float(number) * POWERS[short[len(number) :]])
        if size > 0:
            return size
    raise UsageError(f"`{text}` is no size", where=where, hint="such as 700M, 1.5G or 2GiB")


def parse_path(text: str, where: str) -> Path:
    """The path that a text names. `UsageError` for an empty one, which would be the working directory, and for what no
    file can be called."""
    if not text:
        raise UsageError("an empty path names nothing", where=where, hint="leave the option out, or name a path")
    with suppress(UnicodeEncodeError):
        if b"\0" not in os.fsencode(text):
            return Path(text)
    raise UsageError(f"`{text}` is no path: no file can be called so", where=where, hint="write it in UTF-8")


def parse_threads(count: int, where: str) -> int:
    """A number of threads: 1 or more."""
    if not 1 <= count <= MOST_THREADS:
        raise UsageError(f"{count} threads cannot work", where=where, hint=f"give 1 to {MOST_THREADS:,}")
    return count


def parse_items(count: int, where: str) -> int:
    """A number of items to take: 1 or more."""
    if not 1 <= count <= MOST_ITEMS:
        raise UsageError(f"{count} items cannot be taken", where=where, hint=f"give 1 to {MOST_ITEMS:,}")
    return count


def parse_names(text: str, where: str) -> tuple[str, ...]:
    """The names in `digits, letters`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UsageError("names nothing", where=where, hint="separate names by commas, or leave it out")
    return names


def parse_pairs(texts: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    """NAME=GLOB, each an input and the names of tensors."""
    pairs = [text.rpartition("=") for text in texts]
    if odd := next((text for text, (name, _, glob) in zip(texts, pairs, strict=True) if not name or not glob), None):
        raise UsageError(f"`{odd}` is no input and glob", where=where, hint=f"such as `{where} base 'lm_head.*'`")
    return tuple((name, glob) for name, _, glob in pairs)


def parse_weights(pairs: Sequence[str], where: str) -> dict[str, float]:
    """The weights of `mnist=1.5` and further pairs, each task's once."""
    weights: dict[str, float] = {}
    for pair in pairs:
        task, equals, value = pair.rpartition("=")
        number = None
        with suppress(ValueError):
            number = float(value)
        if not equals or not task or number is None:
            raise UsageError(f"`{pair}` is no NAME=VALUE", where=where, hint=f"such as {where} mnist=1.5")
        if task in weights:
            raise UsageError(f"`{task}` has two weights", where=where, hint="give each task one")
        weights[task] = number
    return weights
