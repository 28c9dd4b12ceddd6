"""Arrays by name from an .npz file: only those named, memory-mapped where they are stored uncompressed."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taskmerge.data.sources.contract import ItemSource, existing, no_such_column, said_at, state_of
from taskmerge.data.sources.decode import decode_array
from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.suite import Split

LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip archive's entry: lengths of its name and extra field are the last four of thirty bytes."""


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


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """One array of an archive, or None if it has none of that name. Never unpickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, entry)
            with archive.open(entry) as stream:
                array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
                return array
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error) as error:
        pickled = "allow_pickle" in str(error)
        what = "holds Python objects, which are never unpickled" if pickled else f"damaged: {error}"
        raise BadFile(what, where=f"{path}: `{name}`", hint="write it again with numpy.savez") from None
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}", where=str(path), hint="check its permissions") from error


def _mapped(path: Path, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """An uncompressed array where it lies in the file."""
    with path.open("rb") as stream:
        stream.seek(entry.header_offset)
        name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        stream.seek(entry.header_offset + LOCAL_HEADER.size + name + extra)
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError("allow_pickle")
        start = stream.tell()
    if not np.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C")


def _picked(path: Path, name: str, split: Split) -> NDArray[Any]:
    array = read_array(path, name)
    if array is None:
        with zipfile.ZipFile(path) as archive:
            known = [one.removesuffix(".npy") for one in archive.namelist()]
        raise no_such_column("array", name, known, split, str(path))
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
