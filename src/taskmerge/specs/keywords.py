"""Keywords of the Python functions, read as the command reads its words: each in its own type, or a `UsageError`."""

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from taskmerge.errors import UsageError
from taskmerge.methods.options import LARGEST_INTEGER, LARGEST_NUMBER
from taskmerge.specs.values import parse_items, parse_names, parse_pairs, parse_path, parse_size, parse_threads

Reader = Callable[[Any, str], Any]
"""Makes a value of what was given; the second argument names the option in complaints."""


Location = str | Path | None
Names = str | Sequence[str] | None
"""One text, with commas between names, or a sequence of names."""
Globs = str | Sequence[str] | None
Pairs = Sequence[tuple[str, str]] | None
"""One text, or a sequence of them."""
Size = int | str | None
"""Bytes, or a text such as `2G`."""


def given(values: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of a call that say something, but for some."""
    return {name: value for name, value in values.items() if value is not None and name not in without}


def flag_of(keyword: str) -> str:
    """How the command writes a keyword."""
    return f"--{keyword.rstrip('_').replace('_', '-')}"


def read_keywords(readers: Mapping[str, Reader], values: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword that has a reader as that reads it, the others as they are; None says nothing."""
    said = given(values)
    return {name: readers[name](value, flag_of(name)) if name in readers else value for name, value in said.items()}


def text(value: object, where: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise UsageError(f"a text is wanted, not `{value}`", where=where, hint="put it in quotes")
    return value


def spelled(value: object, where: str) -> str:
    """A text, or torch's own word for a type or a device."""
    return str(value) if isinstance(value, torch.dtype | torch.device) else text(value, where)


def switch(value: object, where: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"`{value}` is neither True nor False", where=where, hint="give one of them, or leave it out")
    return value


def whole(value: object, where: str) -> int:
    """An integer, of whatever type."""
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            number = operator.index(value)  # type: ignore[arg-type]  # what is none is refused below
            if abs(number) <= LARGEST_INTEGER:
                return number
    raise UsageError(f"`{value}` is no whole number", where=where, hint="such as 3")


def threads(value: object, where: str) -> int:
    """A number of threads."""
    return parse_threads(whole(value, where), where)


def items(value: object, where: str) -> int:
    """A number of items."""
    return parse_items(whole(value, where), where)


def size(value: object, where: str) -> int:
    """Bytes: a number, or a text such as `2G`."""
    if isinstance(value, str):
        return parse_size(value, where)
    count = whole(value, where)
    if count < 1:
        raise UsageError(f"{count} bytes are no size", where=where, hint="such as 700M, 1.5G or 2GiB")
    return count


def names(value: object, where: str) -> tuple[str, ...]:
    """Names: one text, separated by commas, or a sequence."""
    return parse_names(value, where) if isinstance(value, str) else _texts(value, where)


def globs(value: object, where: str) -> tuple[str, ...]:
    """One text, or a sequence of them; commas belong to the text."""
    return (value,) if isinstance(value, str) else _texts(value, where)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"texts are wanted, not `{value}`", where=where, hint="a list, such as ['a', 'b']")
    return tuple(value)


def number(value: Any, where: str) -> float:
    """A finite number."""
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            if math.isfinite(float(value)):
                return float(value)
    raise UsageError(f"{value} is no factor", where=where, hint="give a finite number")


def pairs(value: object, where: str) -> tuple[Any, ...]:
    """Pairs of an input and a glob, each as two texts or as NAME=GLOB."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        hint = "such as [('base', 'lm_head.*')]"
        raise UsageError(f"pairs of an input and a glob are wanted, not `{value}`", where=where, hint=hint)
    return tuple(parse_pairs([pair], where)[0] if isinstance(pair, str) else pair for pair in value)


def path(value: object, where: str) -> Path:
    """A path, as text or as `Path`."""
    if isinstance(value, Path):
        return value
    if isinstance(value, str):
        return parse_path(value, where)
    raise UsageError(
        f"a path is wanted, not a {type(value).__name__}", where=where, hint="such as 'merged.safetensors'"
    )


def weights(value: object, where: str) -> dict[str, float]:
    """Numbers by task."""
    if not isinstance(value, Mapping):
        raise UsageError(f"weights are numbers by task, not `{value}`", where=where, hint="such as {'mnist': 1.5}")
    return {str(task): weight(str(task), number, where) for task, number in value.items()}


def weight(task: str, value: Any, where: str) -> float:
    """A weight: what tensors of float32 can be multiplied by."""
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if number is None:
        raise UsageError(f"the weight of `{task}` is a number, not `{value}`", where=where, hint="such as 0.3")
    if not abs(number) <= LARGEST_NUMBER:  # NaN too
        raise UsageError(f"the weight of `{task}` is {value}", where=where, hint="give a finite number, such as 0.3")
    return number


def function(value: object, where: str) -> object:
    """What can be called."""
    if not callable(value):
        raise UsageError(f"`{value}` cannot be called", where=where, hint="give a function, or leave it out")
    return value
