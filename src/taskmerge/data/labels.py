"""Labels as tensors of their kind, every one checked; class names of the source brought into the task's order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskmerge.data.sources.contract import Broken, ItemSource
from taskmerge.data.sources.decode import decode_stored
from taskmerge.errors import BadFile, listed
from taskmerge.specs.class_names import match_classes, match_numbers, table_of_classes
from taskmerge.specs.suite import Task, TaskKind
from taskmerge.types import Note

IGNORED = -1
"""The class of pixels that no score counts; 255, the other custom, is read as this where no class has that number."""

LARGEST = 2**53
"""Above it floats are no longer sure to be whole."""
FROM_ZERO = "classes are whole numbers from 0, or their names"

Labels = Sequence[Any] | NDArray[Any]
"""Labels as a source stores them."""


def read_labels(source: ItemSource, indices: Sequence[int], task: Task, note: Note) -> Tensor:
    """The labels of these items: int64 [N], float32 [N], or maps [N, H, W] or [N, 3, H, W] by the task's kind.

    `note` is told how a source's own classes were matched to the task's. Errors: `BadFile` naming the item.
    """
    values = source.labels(indices) if source.labels else ()
    if len(values) != len(indices):
        raise BadFile(f"{len(values)} labels for {len(indices)} items", where=source.where, hint="one label an item")
    read: Mapping[TaskKind, Callable[[], Tensor]] = {
        "classification": lambda: _classes(values, source, indices, task, note),
        "regression": lambda: _numbers(values, source, indices),
        "segmentation": lambda: _class_maps(values, source, indices, task),
        "depth": lambda: _real_maps(values, source, indices, channels=1),
        "normals": lambda: _real_maps(values, source, indices, channels=3),
    }
    return read[task.kind]()


# --- classes ---------------------------------------------------------------------------------------------------


def _classes(values: Labels, source: ItemSource, indices: Sequence[int], task: Task, note: Note) -> Tensor:
    table = _table(source, task, note)
    if any(isinstance(value, str) for value in values[:1]):
        values = _by_name(values, source, indices, task)
        table = None
    numbers = _integers(values, source, indices)
    count = len(task.classes)
    bad = (numbers < 0) | (numbers >= (len(table) if table is not None else count or np.iinfo(np.int64).max))
    if bad.any():
        raise _outside(numbers, int(np.argmax(bad)), source, indices, task, withheld=bool((numbers == -1).all()))
    if table is not None:
        numbers = np.array([table[number] for number in range(len(table))], dtype=np.int64)[numbers]
    if len(indices) == source.length:
        _note_empty(numbers, source, task, note)
    return torch.from_numpy(numbers)


def _table(source: ItemSource, task: Task, note: Note) -> Mapping[int, int] | None:
    """From the source's class numbers to the task's; None where the source names no classes or they agree."""
    theirs, ours = source.class_names, task.classes
    if not theirs or not ours or tuple(theirs) == tuple(ours):
        return None
    table, said = table_of_classes(theirs, ours, source.where, by=source.classes_by)
    if said is not None:
        note(f"{source.where}: {said}")
    return table


def _note_empty(numbers: NDArray[np.int64], source: ItemSource, task: Task, note: Note) -> None:
    """Says which classes no item of the whole split is of: nothing is measured on them."""
    there = set(np.unique(numbers).tolist())
    empty = [name for number, name in enumerate(task.classes) if number not in there]
    if empty and len(numbers):
        note(f"{source.where}: {len(empty)} of {len(task.classes)} classes have no item: {listed(empty, 6)}")


def _by_name(values: Labels, source: ItemSource, indices: Sequence[int], task: Task) -> NDArray[np.int64]:
    """Labels that are texts: names of the task's classes."""
    names = sorted({str(value) for value in values})
    table = match_classes(names, task.classes) or match_numbers(names, len(task.classes))
    if table is None:
        place = next(n for n, value in enumerate(values) if match_classes([str(value)], task.classes) is None)
        what = f"label `{values[place]}` is none of the {len(task.classes)} classes of `{task.name}`"
        raise BadFile(what, where=source.place(indices[place]), hint=f"its classes are {listed(task.classes, 5)}")
    numbers = {name: table[place] for place, name in enumerate(names)}
    return np.array([numbers[str(value)] for value in values], dtype=np.int64)


def _integers(values: Labels, source: ItemSource, indices: Sequence[int]) -> NDArray[np.int64]:
    """Class numbers as int64 [N]; whole floats count, empty values and texts don't."""
    if isinstance(values, np.ndarray):
        values = _single(values, source)
        if values.dtype.kind in "iub":
            return values.astype(np.int64)
    for place, value in enumerate(values):
        if not _is_number(value) or not abs(value) < LARGEST or value != int(value):
            raise BadFile(f"label `{value}` is no class number", where=source.place(indices[place]), hint=FROM_ZERO)
    return np.array([int(value) for value in values], dtype=np.int64)


def _single(values: NDArray[Any], source: ItemSource) -> NDArray[Any]:
    """[N] from [N] or [N, 1]."""
    if values.size != len(values):
        shape = "x".join(map(str, values.shape))
        raise BadFile(f"labels of shape {shape}, not one an item", where=source.where, hint="name another array")
    return values.reshape(-1)


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.size != 1:
        return False
    return isinstance(value, int | float | np.number | np.bool_ | np.ndarray) and not np.iscomplexobj(value)


def _outside(
    numbers: NDArray[np.int64], place: int, source: ItemSource, indices: Sequence[int], task: Task, *, withheld: bool
) -> BadFile:
    what = f"label {numbers[place]} is outside the {len(task.classes)} classes of `{task.name}`"
    hint = f"classes count from 0 to {len(task.classes) - 1}; is `classes` complete?"
    if withheld:
        hint = "every label is -1: this split's labels are withheld, score on another split"
    return BadFile(what, where=source.place(indices[place]), hint=hint)


# --- numbers and maps ------------------------------------------------------------------------------------------


def _numbers(values: Labels, source: ItemSource, indices: Sequence[int]) -> Tensor:
    """Finite numbers, float32 [N]."""
    if isinstance(values, np.ndarray):
        values = _single(values, source)
    for place, value in enumerate(values):
        if not _is_number(value):
            raise BadFile(
                f"label `{value}` is no number", where=source.place(indices[place]), hint="one number an item"
            )
    with np.errstate(over="ignore"):
        numbers = np.array([float(value) for value in values]).astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        place = int(np.argmax(bad))
        what = f"label is {values[place]}"
        raise BadFile(what, where=source.place(indices[place]), hint="repair or remove the item")
    return torch.from_numpy(numbers)


def _class_maps(values: Labels, source: ItemSource, indices: Sequence[int], task: Task) -> Tensor:
    maps = _stacked(values, source, indices, channels=1)
    if maps.dtype.kind not in "iub" and not (maps.dtype.kind == "f" and (maps == np.rint(maps)).all()):
        raise BadFile(f"class maps are {maps.dtype}, not integers", where=source.where, hint="one class a pixel")
    count = len(task.classes)
    classes = maps.astype(np.int64)
    if count <= 255:
        classes[classes == 255] = IGNORED
    bad = ((classes < IGNORED) | (classes >= count)).reshape(len(classes), -1)
    if bad.any():
        place = int(np.argmax(bad.any(axis=1)))
        label = classes[place].reshape(-1)[int(np.argmax(bad[place]))]
        what = f"label {label} is outside the {count} classes of `{task.name}`"
        hint = f"classes count from 0 to {count - 1}; {IGNORED} and 255 are not counted"
        raise BadFile(what, where=source.place(indices[place]), hint=hint)
    return torch.from_numpy(classes)


def _real_maps(values: Labels, source: ItemSource, indices: Sequence[int], *, channels: int) -> Tensor:
    """Depth [N, H, W] or normals [N, 3, H, W], float32."""
    with np.errstate(over="ignore"):
        maps = _stacked(values, source, indices, channels=channels).astype(np.float32)
    bad = ~np.isfinite(maps).reshape(len(maps), -1).all(axis=1)
    if bad.any():
        place = int(np.argmax(bad))
        hint = "mark what is not known by 0"
        raise BadFile("map holds NaN or infinity", where=source.place(indices[place]), hint=hint)
    return torch.from_numpy(maps)


def _stacked(values: Labels, source: ItemSource, indices: Sequence[int], *, channels: int) -> NDArray[Any]:
    """Maps of one size as one array: [N, H, W], or channels first [N, C, H, W]."""
    maps = [_map(value, source.place(index), channels) for value, index in zip(values, indices, strict=True)]
    for index, array in zip(indices, maps, strict=True):
        if array.shape != maps[0].shape:
            what = f"map of shape {array.shape}, the first has {maps[0].shape}"
            raise BadFile(what, where=source.place(index), hint="bring all maps of a split to one size")
    return np.stack(maps)


def _map(value: Any, place: str, channels: int) -> NDArray[Any]:
    array = decode_stored(value)
    if isinstance(array, Broken):
        raise BadFile(f"label map cannot be decoded: {array.reason}", where=place, hint="repair or remove the item")
    if channels == 1 and array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if channels > 1 and array.ndim == 3 and array.shape[0] != channels and array.shape[-1] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != (2 if channels == 1 else 3) or (channels > 1 and array.shape[0] != channels):
        wanted = "[H, W]" if channels == 1 else f"[{channels}, H, W]"
        raise BadFile(f"map has the shape {array.shape}", where=place, hint=f"maps are {wanted}")
    return array
