"""Items without labels: what adaptation and choices without labels may see of a split, whatever it holds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from taskmerge.data.corruptions import Corruption
from taskmerge.data.datasets import load_items
from taskmerge.data.items import Items
from taskmerge.data.sources.contract import Note
from taskmerge.specs.suite import Location, Split, Task
from taskmerge.types import Prepare


def load_unlabelled(
    task: Task,
    split: str,
    prepare: Prepare,
    *,
    resolve: Callable[[Location], Path],
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    skip_bad: bool = False,
    corrupt: Corruption | None = None,
    note: Note = lambda _: None,
) -> Items:
    """As `load_items`, with labels None: the split's label column is neither read nor required to exist."""
    hidden: dict[str, Split] = {name: replace(one, y=None) for name, one in task.splits.items()}
    return load_items(
        replace(task, splits=hidden), split, prepare, resolve=resolve, limit=limit, seed=seed, cache=cache,
        skip_bad=skip_bad, corrupt=corrupt, note=note,
    )  # fmt: skip
