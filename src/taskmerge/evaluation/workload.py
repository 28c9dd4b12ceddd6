"""Which items are encoded: every task's split, clean and corrupted, loaded in portions that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from taskmerge.data.corruptions import Corruption
from taskmerge.data.datasets import load_items
from taskmerge.data.items import Items
from taskmerge.errors import Mismatch, UsageError, unknown_name
from taskmerge.specs.suite import Location, Suite, Task
from taskmerge.types import Prepare

AT_ONCE = 2 * 10**9
"""Bytes of decoded items that are held at once; above it, checkpoints are filled anew for every portion."""


@dataclass(frozen=True)
class DataSet:
    """The labelled items of one task, clean or corrupted."""

    task: Task
    corruption: Corruption | None
    items: Items
    labels: Tensor

    @property
    def key(self) -> tuple[str, Corruption | None]:
        return self.task.name, self.corruption


@dataclass(frozen=True)
class Choice:
    """What is taken of the suite's data; see `evaluate`."""

    split: str
    corrupt: tuple[Corruption | None, ...]
    limit: int | None = None
    seed: int = 0
    skip_bad: bool = False
    cache: Path | None = None


def chosen(suite: Suite, tasks: Sequence[str] | None, split: str) -> tuple[Task, ...]:
    """The tasks to evaluate, in the suite's order; each must have the split, with labels."""
    known = {task.name: task for task in suite.tasks}
    for name in tasks or ():
        if name not in known:
            raise unknown_name("task", name, known, where=suite.where)
    found = tuple(task for task in suite.tasks if tasks is None or task.name in tasks)
    if not found:
        raise UsageError("no task is left to evaluate", where=suite.where, hint=f"known: {', '.join(known)}")
    for task in found:
        _check_split(task, split, suite)
    return found


def portions(
    tasks: Sequence[Task],
    choice: Choice,
    prepare: Prepare,
    *,
    resolve: Callable[[Location], Path],
    told: Callable[[str], None],
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[list[list[DataSet]]]:
    """Loads all data sets, a portion at a time. Within a portion, those with equal inputs are one list.

    `told` hears which one is read, `note` what is worth knowing about it.
    """
    portion: list[list[DataSet]] = []
    held = 0
    for corruption in choice.corrupt:
        for task in tasks:
            told(f"{task.name}, {corruption.name}" if corruption else task.name)
            one = _loaded(task, corruption, choice, prepare, resolve, note)
            held += _join(portion, one)
            if held > AT_ONCE:
                yield portion
                portion, held = [], 0
    if portion:
        yield portion


def _check_split(task: Task, split: str, suite: Suite) -> None:
    where = task.place or suite.where
    if split not in task.splits:
        known = ", ".join(task.splits)
        raise UsageError(f"task `{task.name}` has no split `{split}`", where=where, hint=f"it has {known}")


def _loaded(
    task: Task,
    corruption: Corruption | None,
    choice: Choice,
    prepare: Prepare,
    resolve: Callable[[Location], Path],
    note: Callable[[str], None],
) -> DataSet:
    try:
        items = load_items(
            task, choice.split, prepare, resolve=resolve, limit=choice.limit, seed=choice.seed, cache=choice.cache,
            skip_bad=choice.skip_bad, corrupt=corruption, note=note,
        )  # fmt: skip
    except Mismatch as error:  # items that are not for this backbone
        raise Mismatch(f"task `{task.name}`: {error.what}", where=error.where, hint=error.hint) from error
    if items.labels is None:
        what = f"split `{choice.split}` of task `{task.name}` has no labels"
        hint = "scores need labels: evaluate a labelled split, or add `y` to this one"
        raise UsageError(what, where=task.splits[choice.split].place or None, hint=hint)
    return DataSet(task, corruption, items, items.labels)


def _join(portion: list[list[DataSet]], one: DataSet) -> int:
    """Adds a data set to those with the same inputs, whose memory it then shares; returns the bytes it adds."""
    for group in portion:
        if same_inputs(group[0].items, one.items):
            group.append(replace(one, items=replace(one.items, inputs=group[0].items.inputs)))
            return 0
    portion.append([one])
    return sum(whole.nbytes for whole in one.items.inputs.values())


def same_inputs(one: Items, other: Items) -> bool:
    """Whether two tasks look at the same pictures or texts in the same order, whatever their labels."""
    if one.inputs.keys() != other.inputs.keys():
        return False
    pairs = [(one.inputs[name], other.inputs[name]) for name in one.inputs]
    return all(torch.equal(a[:1], b[:1]) for a, b in pairs) and all(torch.equal(a, b) for a, b in pairs)
