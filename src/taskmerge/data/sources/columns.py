"""Columns of Arrow tables as Python values, and nested lists of numbers as arrays, never as lists of lists."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def values_of(column: "pa.Array[Any] | pa.ChunkedArray[Any]") -> list[Any]:
    """One value a row: pictures and maps stored as nested lists (`datasets`' Array2D and Array3D) become arrays."""
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole.type, pa.BaseExtensionType):
        whole = whole.storage
    if not _is_list(whole.type):
        found: list[Any] = whole.to_pylist()
        return found
    return [_array(whole, row) for row in range(len(whole))]


def lists(kind: "pa.DataType") -> bool:
    """Whether a column's values are lists."""
    import pyarrow as pa

    return _is_list(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _array(column: Any, row: int) -> Any:
    """One row's nested lists as an array; what is ragged, missing or no number stays a list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    part, shape = column.slice(row, 1), []
    while _is_list(part.type):
        sizes = pc.unique(pc.list_value_length(part)).to_pylist()
        if len(sizes) != 1 or sizes[0] is None:
            return column[row].as_py()
        shape.append(sizes[0])
        part = part.flatten()
    if not pa.types.is_primitive(part.type):
        return column[row].as_py()
    numbers: np.ndarray[Any, Any] = part.to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)
