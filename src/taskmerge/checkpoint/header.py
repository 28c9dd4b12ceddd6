"""The header of a safetensors file: read and checked by our own strict parser, before any byte of weights."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from taskmerge.checkpoint.dtypes import DTYPES, UNSUPPORTED, itemsize
from taskmerge.documents import cycles_left, open_regular
from taskmerge.errors import BadFile

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
MAX_DEPTH = 128
MAX_DIMENSIONS = 16
"""Sides of a tensor: no weight has more than six, and libraries give up at 32 or 64."""
METADATA_KEY = "__metadata__"
DEQUANTISED = "BF16"
"""What dequantised weights are written in: whoever made the codes started from it, or from what it holds."""

_U64_MAX = 2**64 - 1
_DIM_MAX = 2**63 - 1
_FIELDS = ("dtype", "shape", "data_offsets")
_AGAIN = "the file is damaged: download or copy it again"
_STRANGERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights", "fetch the weights with `git lfs pull`"),
    (b"PK\x03\x04", "is a zip archive, as torch.save writes", "name it .pt and pass --allow-pickle, or convert it"),
    (b"\x80\x02", "is a Python pickle, as torch.save writes", "name it .pt and pass --allow-pickle, or convert it"),
    (b"GGUF", "is a GGUF file", "use the safetensors weights of this model"),
    (b"<", "is a web page or XML, not weights", "download the file itself, not the page about it"),
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as a header describes it.

    `dtype` is the safetensors code, `start` the absolute offset of its first byte in `file` (0 in a pickled file).
    Weights that are stored as codes are F32, the values that codes and scales stand for; `scaling` says which.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int
    scaling: "Scaling | None" = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> "tuple[TensorSpec, ...]":
        """What its values are read from: itself, or codes and scales."""
        return (self,) if self.scaling is None else (self.scaling.codes, self.scaling.scale)

    @property
    def kept(self) -> str:
        """The type that a result of such tensors is written in, unless told otherwise."""
        return self.dtype if self.scaling is None else DEQUANTISED


@dataclass(frozen=True, slots=True)
class Scaling:
    """How weights are stored as codes: a matrix of `rows` x `columns` (or several, one below the other), of which each
    block [height, width] has one value of `scale`, in the same order. Blocks at the edges may be smaller."""

    codes: TensorSpec
    scale: TensorSpec
    rows: int
    columns: int
    block: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """The tensors of one file, sorted by name, and its text metadata."""

    path: Path
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]


class _HeaderError(Exception):
    """What is wrong with a header, with which tensor, and what to do about it."""

    def __init__(self, what: str, tensor: str | None = None, *, hint: str = _AGAIN) -> None:
        super().__init__(what)
        self.what = what
        self.tensor = tensor
        self.hint = hint


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Accepts what the format allows and nothing else: see the errors, each a `BadFile` that names file and tensor.
    """
    raw, size = _header_bytes(path)
    try:
        with cycles_left():
            document = _parse(raw)
            metadata = _metadata(document.pop(METADATA_KEY, None))
            specs = [_spec(name, entry, path, LENGTH_BYTES + len(raw)) for name, entry in document.items()]
        _check_layout(specs, LENGTH_BYTES + len(raw), size)
    except _HeaderError as error:
        where = f"{path}: `{error.tensor}`" if error.tensor is not None else str(path)
        raise BadFile(error.what, where=where, hint=error.hint) from None
    return Header(path, MappingProxyType({s.name: s for s in sorted(specs, key=lambda s: s.name)}), metadata)


def raw_header(path: Path) -> bytes:
    """Length and header of a safetensors file, byte for byte. Raises what `read_header` raises."""
    raw, _ = _header_bytes(path)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def read_exactly(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset`; fewer only at the end of the file."""
    parts: list[bytes] = []
    while count > 0 and (part := os.pread(descriptor, count, offset)):
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The bytes of the JSON header and the size of the whole file."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        start = read_exactly(descriptor, 64, 0)
        length = _header_length(path, start, size)
        return read_exactly(descriptor, length, LENGTH_BYTES), size
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", where=str(path), hint="check the disk") from error
    finally:
        os.close(descriptor)


def _header_length(path: Path, start: bytes, size: int) -> int:
    where = str(path)
    if size == 0:
        raise BadFile("is empty (0 bytes)", where=where, hint="download or copy it again")
    if size < LENGTH_BYTES:
        raise BadFile(f"is too short for safetensors ({size} bytes)", where=where, hint=_AGAIN)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        for magic, what, hint in _STRANGERS:
            if start.lstrip().startswith(magic):
                raise BadFile(what, where=where, hint=hint)
        text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
        what = "is a text file, not safetensors" if text else f"header length {length} is above the limit {MAX_HEADER}"
        raise BadFile(what, where=where, hint="pass a safetensors file, or download it again")
    if LENGTH_BYTES + length > size:
        what = f"header length {length} reaches beyond the end of the file ({size} bytes)"
        raise BadFile(what, where=where, hint=_AGAIN)
    return length


def _parse(raw: bytes) -> dict[str, Any]:
    """The header as JSON, with what Python's parser lets through but the format does not taken out.

    A large model has some 100,000 entries: what few headers hold is looked for only where it can be.
    """
    try:
        text = raw.decode("utf-8")
        integers = _integer if "-0" in text else int
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=integers)
    except UnicodeDecodeError as error:
        raise _HeaderError(f"header is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _HeaderError(f"header is not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise _HeaderError(f"header is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _HeaderError("header is not a JSON object")
    if "\\u" in text or not all(_is_plain(entry) for name, entry in document.items() if name != METADATA_KEY):
        _check_text(document, depth=1)
    return document


def _is_plain(entry: object) -> bool:
    """Whether an entry has the fields of a tensor alone, which are looked at one by one."""
    return isinstance(entry, dict) and len(entry) == len(_FIELDS)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _HeaderError(f"header has the key `{next(key for key, _ in pairs if counts[key] > 1)}` twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise _HeaderError(f"header is not JSON: {name}")


def _integer(text: str) -> int | float:
    # JSON's -0 is a float; as int it would pass for a valid offset.
    return -0.0 if text == "-0" else int(text)


def _check_text(value: object, depth: int) -> None:
    """Refuse text that UTF-8 cannot hold (an escaped lone surrogate), and nesting beyond any sense."""
    if depth > MAX_DEPTH:
        raise _HeaderError("header is nested too deeply")
    foreign = isinstance(value, str) and not value.isascii()
    if foreign and any("\ud800" <= character <= "\udfff" for character in str(value)):
        raise _HeaderError("header is not Unicode text: lone surrogate")
    entries = (*value.keys(), *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for entry in entries:
        _check_text(entry, depth + 1)


def _metadata(entry: object) -> Mapping[str, str]:
    if entry is None:
        return MappingProxyType({})
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise _HeaderError(f"{METADATA_KEY} is not a map from text to text")
    return MappingProxyType(dict(sorted(entry.items())))


def _spec(name: str, entry: object, path: Path, data_start: int) -> TensorSpec:
    """One tensor's entry, checked on its own: fields, dtype, shape, and size against shape."""
    if not isinstance(entry, dict):
        raise _HeaderError("entry is not an object", name)
    try:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except KeyError:
        missing = [field for field in _FIELDS if field not in entry]
        raise _HeaderError(f"entry lacks {', '.join(missing)}", name) from None
    if isinstance(code, str) and code in UNSUPPORTED:
        raise _HeaderError(f"dtype {code} is not supported", name, hint=UNSUPPORTED[code])
    if not isinstance(code, str) or code not in DTYPES:
        raise _HeaderError(f"unknown dtype {_shown(code)}; known: {', '.join(DTYPES)}", name)
    if not isinstance(shape, list) or not _are_sizes(shape):
        raise _HeaderError(f"shape {_shown(shape)} is not a list of sizes", name)
    if len(shape) > MAX_DIMENSIONS:
        what = f"has {len(shape)} dimensions, more than the {MAX_DIMENSIONS} that a tensor may have here"
        raise _HeaderError(what, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_sizes(offsets):
        raise _HeaderError(f"data_offsets {_shown(offsets)} are not two byte positions", name)
    begin, end = offsets
    nbytes = _checked_bytes(name, code, shape)
    if end - begin != nbytes:
        raise _HeaderError(f"offsets {offsets} span {end - begin} bytes, {code} {_shown(shape)} needs {nbytes}", name)
    return TensorSpec(name, code, tuple(shape), path, data_start + begin, nbytes)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "[[[..."
    return text if len(text) <= 60 else f"{text[:60]}..."


def _are_sizes(values: list[object]) -> bool:
    return all(type(value) is int and 0 <= value <= _DIM_MAX for value in values)


def _checked_bytes(name: str, code: str, shape: list[int]) -> int:
    numel = 1
    for side in shape:
        numel *= side
        if numel > _U64_MAX:
            raise _HeaderError(f"shape {_shown(shape)} is too large", name)
    if numel * itemsize(code) * 8 > _U64_MAX:
        raise _HeaderError(f"shape {_shown(shape)} is too large", name)
    return numel * itemsize(code)


def _check_layout(specs: list[TensorSpec], data_start: int, size: int) -> None:
    """The tensors lie one after the other without hole or overlap, and end where the file ends."""
    expected = data_start
    for spec in sorted(specs, key=lambda spec: (spec.start, spec.nbytes)):
        if spec.start != expected:
            kind = "overlaps the tensor before it" if spec.start < expected else "leaves a hole before it"
            raise _HeaderError(f"data_offsets start at {spec.start - data_start}: {kind}", spec.name)
        expected += spec.nbytes
        if expected > size:
            what = f"data end at byte {expected}, the file has {size}: truncated, or offsets out of range"
            raise _HeaderError(what, spec.name)
    if expected < size:
        raise _HeaderError(f"{size - expected} bytes follow the last tensor")
