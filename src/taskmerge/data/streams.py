"""Items without labels: what adaptation and choices without labels may see of a split, whatever it holds."""

from taskmerge.data.items import Items
from taskmerge.data.loading import LoadOptions, draw, items_of
from taskmerge.specs.suite import Task
from taskmerge.types import Prepare


def load_unlabelled(task: Task, split: str, prepare: Prepare, options: LoadOptions) -> Items:
    """The items of a task's split. Its label column is neither read nor required to exist.

    Errors: `UsageError` for a split or column of items that does not exist, `BadFile` for an empty split or an item
    that cannot be decoded.
    """
    return items_of(draw(task, split, options, labelled=False), prepare, options)
