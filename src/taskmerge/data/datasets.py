"""Items with their labels: what scores are computed from. Nothing that learns may import this."""

import torch
from torch import Tensor

from taskmerge.data.items import Items, Labelled
from taskmerge.data.labels import read_labels
from taskmerge.data.loading import Drawn, LoadOptions, draw, items_of
from taskmerge.errors import Mismatch, UsageError
from taskmerge.specs.suite import Task
from taskmerge.types import Prepare


def load_labelled(task: Task, split: str, prepare: Prepare, options: LoadOptions) -> Labelled:
    """The items of a task's split and their labels, which are checked before anything is decoded.

    Errors: `UsageError` for a split that does not exist or has no labels, and for a column that does not exist,
    `BadFile` for an empty split, an item that cannot be decoded, or a label that is none, `Mismatch` for label maps of
    another size than the pictures.
    """
    drawn = draw(task, split, options, labelled=True)
    if drawn.source.labels is None:
        what = f"split `{split}` of task `{task.name}` has no labels"
        hint = "scores need labels: evaluate a labelled split, or add `y` to this one"
        raise UsageError(what, where=task.splits[split].place or None, hint=hint)
    labels = read_labels(drawn.source, drawn.places, task, options.note)
    items = items_of(drawn, prepare, options)
    _check_sizes(labels, items, drawn.source.where)
    return Labelled(items, _of_decoded(labels, items, drawn))


def _check_sizes(labels: Tensor, items: Items, where: str) -> None:
    """Label maps have the size of the prepared pictures."""
    pixels = items.inputs.get("pixels")
    if labels.ndim > 1 and pixels is not None and labels.shape[-2:] != pixels.shape[-2:]:
        map_size, picture_size = (f"{maps.shape[-2]}x{maps.shape[-1]}" for maps in (labels, pixels))
        what = f"label maps are {map_size}, pictures {picture_size}"
        raise Mismatch(what, where=where, hint="bring labels to the pictures' size, a label a pixel")


def _of_decoded(labels: Tensor, items: Items, drawn: Drawn) -> Tensor:
    """The labels of those items that could be decoded."""
    if not items.skipped:
        return labels
    return labels[torch.isin(torch.tensor(drawn.places, dtype=torch.int64), items.indices)]
