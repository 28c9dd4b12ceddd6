"""The door through which small documents come in: regular files of a stated size, JSON of a stated depth and range.

Whoever writes such a file may have written anything: what comes through here is plain values that later code can walk,
print and compare without surprise. YAML comes through `specs.document`, which has the same limits.
"""

import gc
import gzip
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from taskmerge.errors import BadFile

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

LARGEST = 32 << 20
"""Bytes of a document, if its reader says nothing else."""
DEEPEST = 100
"""Levels of lists and maps inside each other."""
LARGEST_NUMBER = 2**1024
"""What no float reaches."""
DIGITS = 400
"""Of a whole number: more of them are not even turned into one."""
EXPANDED, RATIO = 1 << 30, 100
"""A compressed file, or a member of one, may expand to 1 GiB, or to a hundred times its size where that is more."""
AGAIN = "download or write it again"


def open_regular(path: Path) -> int:
    """Open a regular file for reading; anything else (missing, folder, pipe, device, no permission) is a `BadFile`."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadFile("is a folder, not a file", where=str(path), hint="name the file in it")
        if not stat.S_ISREG(mode):
            raise BadFile("is not a regular file", where=str(path), hint="copy it to a file first")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe put there meanwhile: no waiting
    except FileNotFoundError:
        raise BadFile("no such file", where=str(path), hint="check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadFile(f"cannot be opened: {reason}", where=str(path), hint="check path and permissions") from error


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises `BadFile` for anything else, and for more than `largest` bytes."""
    with open(open_regular(path), "rb") as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise BadFile(f"cannot be read: {error.strerror}", where=str(path), hint="check the disk") from error
    if len(content) > largest:
        what = f"is larger than the {largest / (1 << 20):.3g} MiB that such a file may have"
        raise BadFile(what, where=str(path), hint="is it the right file?")
    return content


def read_json(path: Path, *, hint: str = AGAIN, largest: int = LARGEST, constants: bool = False) -> Any:
    """The JSON in a regular file. Raises `BadFile` that names the file; `hint` says what to do about bad JSON.

    `constants` lets NaN and Infinity through, which configurations of models have.
    """
    content = read_regular(path, largest)
    try:
        return parse_json(content, constants=constants)
    except ValueError as error:
        raise BadFile(f"is not JSON: {error}", where=str(path), hint=hint) from None


def read_object(path: Path, *, hint: str = AGAIN, largest: int = LARGEST, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a regular file: `read_json`, and `BadFile` for anything else than an object."""
    document = read_json(path, hint=hint, largest=largest, constants=constants)
    if not isinstance(document, dict):
        raise BadFile("is no JSON object", where=str(path), hint=hint)
    return document


def object_at(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file, NaN and Infinity in it; None where there is none that can be read.

    For what is looked at in passing: a damaged file is the same to whoever asks as none.
    """
    try:
        return read_object(path, constants=True)
    except BadFile:
        return None


def object_in(content: str | bytes) -> dict[str, Any] | None:
    """As `object_at`, of a text."""
    try:
        value = parse_json(content, constants=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def validated(document: object, schema: Mapping[str, Any], *, where: str, hint: str = AGAIN) -> dict[str, Any]:
    """The document, if it is what a published schema of ours describes: of its kind and version, if the schema has
    those (`report`, `schema_version`), and of its form.

    Raises BadFile that names the version, or the first place that breaks the schema.
    """
    wanted = {key: own["const"] for key, own in schema["properties"].items() if "const" in own}
    command = f"`{schema['title']}`"
    if not isinstance(document, dict) or document.get("report") != wanted.get("report"):
        raise BadFile(f"is no report of {command}", where=where, hint=hint)
    version = wanted.get("schema_version")
    if document.get("schema_version") != version:
        what = f"has schema version {document.get('schema_version')!r}, this taskmerge reads {version}"
        raise BadFile(what, where=where, hint=hint)
    from jsonschema import Draft202012Validator

    broken = min(Draft202012Validator(schema).iter_errors(document), key=_place_of, default=None)
    if broken is not None:
        raise BadFile(f"`{broken.json_path}` {_complaint(broken)}", where=where, hint=hint)
    return document


def _place_of(error: "ValidationError") -> list[str]:
    return [f"{part:09}" if isinstance(part, int) else part for part in error.absolute_path]


def _complaint(error: "ValidationError") -> str:
    """What is wrong, without the whole document in it."""
    words = {"required": "lacks a key", "additionalProperties": "has a key too many", "type": "is of another type"}
    detail = error.message if len(error.message) < 160 else ""
    problem = words.get(str(error.validator), "is not allowed")
    return f"{problem}: {detail}" if detail else problem


def expandable(stored: int) -> int:
    """How many bytes a compressed file of `stored` bytes may expand to."""
    return max(EXPANDED, RATIO * stored)


def too_expansive(stored: int, where: str) -> BadFile:
    """The error for a compressed file that expands further."""
    what = f"expands to more than {expandable(stored) / (1 << 30):.3g} GiB, from {stored:,} bytes"
    return BadFile(what, where=where, hint="is it what it should be? decompress it first if it is")


def check_unpacked(path: Path, largest: int = LARGEST) -> None:
    """Raises `BadFile` for what is no gzipped regular file, or one of which more than `largest` bytes come out."""
    with open(open_regular(path), "rb") as file, gzip.GzipFile(fileobj=file) as stream:
        try:
            left = largest
            while left >= 0 and (piece := stream.read(1 << 20)):
                left -= len(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise BadFile(f"is damaged: {error}", where=str(path), hint=AGAIN) from None
    if left < 0:
        what = f"expands to more than the {largest / (1 << 20):.3g} MiB that such a file may have"
        raise BadFile(what, where=str(path), hint="is it the right file?")


def parse_json(content: str | bytes, *, constants: bool = False) -> Any:
    """JSON as plain values, every key once, every number within a float's range, all text Unicode.

    Raises ValueError that says what is wrong, whatever it is.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        with cycles_left():
            value = json.loads(
                text, object_pairs_hook=_once, parse_int=_integer, parse_float=_float,
                parse_constant=float if constants else _no_constant,
            )  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    check_values(value)
    return value


def check_values(value: object) -> None:
    """Raises ValueError for plain values that are nested too deeply, or hold text that is not Unicode."""
    level, depth = [value], 0
    while level:
        inner: list[object] = []
        for one in level:
            if isinstance(one, str):
                check_text(one)
            elif isinstance(one, dict | list) and depth == DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} deep")
            elif isinstance(one, dict):
                inner += (*one.keys(), *one.values())
            elif isinstance(one, list):
                inner += one
        level, depth = inner, depth + 1


def check_text(text: str) -> None:
    """Raises ValueError for half a character (a lone surrogate), which no file can hold."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"half a character at {error.start} of a text") from None


@contextmanager
def cycles_left() -> Iterator[None]:
    """Inside, nobody looks for cycles among a million nodes again and again: it would be two thirds of the time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key `{twice}` stands twice")
    return found


def _integer(text: str) -> int:
    number = int(text) if len(text) <= DIGITS else LARGEST_NUMBER
    if abs(number) >= LARGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits is beyond all range")
    return number


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is beyond all range")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
