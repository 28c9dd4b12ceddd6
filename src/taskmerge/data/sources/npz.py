"""Arrays by name from an .npz file: only those named, memory-mapped where they are stored uncompressed."""

import io
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taskmerge.data.sources.contract import ItemSource, existing, no_such_column, said_at, state_of
from taskmerge.data.sources.decode import decode_array
from taskmerge.data.sources.limits import readable
from taskmerge.documents import expandable, open_regular, too_expansive
from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split

LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip archive's entry: lengths of its name and extra field are the last four of thirty bytes."""


ENCRYPTED = 1
"""The bit of an entry's flags that says so."""
MOST_DIMENSIONS = 32
HEADER_BYTES, PIECE = 1 << 16, 1 << 20


def open_npz(path: Path, split: Split) -> ItemSource:
    """The array that a split names: pictures [N, H, W, 3] (or grey, or channels first), or texts [N].

    Pictures are uint8, or floats in [0, 1] with channels.
    """
    if len(split.x) != 1:
        what = f"names {len(split.x)} arrays of items, not one"
        raise UsageError(what, where=said_at(split, str(path)), hint="such as `x: test_x`")
    name = split.x[0]
    items = _picked(existing(path, "file"), name, split)
    _check_items(items, f"{path}: `{name}`")
    labels = None if split.y is None else _picked(path, split.y, split)
    if labels is not None and len(labels) != len(items):
        what = f"arrays of different lengths: `{name}` has {len(items)}, `{split.y}` has {len(labels)}"
        raise BadFile(what, where=str(path), hint="one label an item")
    return ItemSource(
        where=str(path),
        identity=state_of(path),
        length=len(items),
        read=lambda indices: (decode_array(np.asarray(items[index])) for index in indices),
        decode=lambda item: item,
        place=lambda index: f"{path}: `{name}` item {index}",
        labels=None if labels is None else lambda indices: labels[np.asarray(indices, dtype=np.int64)],
        pictures=items.dtype.kind != "U",
    )


@dataclass(frozen=True)
class Member:
    """One array of an archive by its header; its numbers begin at `start` of the member."""

    entry: zipfile.ZipInfo
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


def array_names(path: Path) -> list[str]:
    """The names of an archive's arrays."""
    with _archive(path, str(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def array_header(path: Path, name: str) -> Member | None:
    """What an array's header says, checked against the size of the member; None if there is none of that name."""
    where = f"{path}: `{name}`"
    with _archive(path, where) as archive:
        return _member(archive, name, where) if f"{name}.npy" in archive.namelist() else None


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """One array of an archive, or None if it has none of that name. Never unpickles; checksums are compared."""
    where = f"{path}: `{name}`"
    with _archive(path, where) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        member = _member(archive, name, where)
        stored = member.entry.compress_type == zipfile.ZIP_STORED and math.prod(member.shape) > 0
        with archive.open(member.entry) as stream:
            return _mapped(path, member, stream) if stored else _read(member, stream)


@contextmanager
def _archive(path: Path, where: str) -> Iterator[zipfile.ZipFile]:
    """An archive by its table of contents; whatever is wrong with it, also later inside, is `BadFile`."""
    with (
        open(open_regular(path), "rb") as file,
        readable("is damaged", where, "write it again with numpy.savez"),
        zipfile.ZipFile(file) as archive,
    ):
        yield archive


def _member(archive: zipfile.ZipFile, name: str, where: str) -> Member:
    """An array whose header, size and way of storing are in order. Raises ValueError or `BadFile` for any other."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.flag_bits & ENCRYPTED:
        raise ValueError("it is encrypted")
    if entry.compress_type != zipfile.ZIP_STORED and entry.file_size > expandable(entry.compress_size):
        raise too_expansive(entry.compress_size, where)
    with archive.open(entry) as stream:
        head = io.BytesIO(stream.read(HEADER_BYTES))
    header = npy.read_array_header_1_0 if npy.read_magic(head) == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = header(head)
    if dtype.hasobject:
        hint = "write it again with numpy.savez"
        raise BadFile("holds Python objects, which are never unpickled", where=where, hint=hint)
    shape = tuple(int(side) for side in shape)
    held = entry.file_size - head.tell()
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{held:,} bytes of numbers are no array {list(shape)} of {dtype}")
    return Member(entry, shape, fortran, dtype, head.tell())


def _read(member: Member, stream: IO[bytes]) -> NDArray[Any]:
    """An array in memory; the end of the member is read too, where its checksum is compared."""
    stream.read(member.start)
    numbers = bytearray(math.prod(member.shape) * member.dtype.itemsize)
    left = memoryview(numbers)
    while left and (part := stream.read(min(len(left), PIECE))):
        left[: len(part)] = part
        left = left[len(part) :]
    if left or stream.read(1):
        raise ValueError("it ends too early, or too late")
    return np.frombuffer(numbers, member.dtype).reshape(member.shape, order="F" if member.fortran else "C")


def _mapped(path: Path, member: Member, stream: IO[bytes]) -> NDArray[Any]:
    """An uncompressed array where it lies in the file, once its checksum was compared."""
    while stream.read(PIECE):
        pass
    with open(open_regular(path), "rb") as file:
        file.seek(member.entry.header_offset)
        name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    start = member.entry.header_offset + LOCAL_HEADER.size + name + extra + member.start
    order: Literal["C", "F"] = "F" if member.fortran else "C"
    return np.memmap(path, dtype=member.dtype, mode="r", offset=start, shape=member.shape, order=order)


def _picked(path: Path, name: str, split: Split) -> NDArray[Any]:
    array = read_array(path, name)
    if array is None:
        raise no_such_column("array", name, array_names(path), split, str(path))
    if array.ndim == 0:
        raise BadFile("is a single value, not an array of items", where=f"{path}: `{name}`", hint="name another array")
    return array


def _check_items(array: NDArray[Any], where: str) -> None:
    """Pictures are uint8 or floats, texts Unicode; anything else is no input."""
    texts = array.dtype.kind == "U" and array.ndim == 1
    sides = (array.shape[1], array.shape[-1]) if array.ndim == 4 else ()
    coloured = 3 in sides or 1 in sides
    pictures = (array.dtype == np.uint8 and (array.ndim == 3 or coloured)) or (array.dtype.kind == "f" and coloured)
    if not texts and not pictures:
        shape = "x".join(map(str, array.shape))
        hint = "pictures are uint8 [N, H, W, 3] or floats in [0, 1], texts an array of Unicode [N]"
        raise BadFile(f"neither pictures nor texts: {array.dtype} {shape}", where=where, hint=hint)
