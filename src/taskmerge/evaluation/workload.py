"""Which items are encoded: every task's split, clean and corrupted, loaded in portions that fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taskmerge.data.corruptions import Corruption
from taskmerge.data.datasets import load_labelled
from taskmerge.data.items import Items, Labelled
from taskmerge.data.loading import LoadOptions
from taskmerge.errors import Mismatch, UsageError, unknown_name
from taskmerge.specs.suite import Suite, Task
from taskmerge.types import Prepare

AT_ONCE = 2 * 10**9
"""Bytes of decoded items that are held at once; above it, checkpoints are filled anew for every portion."""


Key = tuple[str, Corruption | None]
"""A task's name, and how its pictures are corrupted."""


@dataclass(frozen=True)
class DataSet:
    """The labelled items of one task, clean or corrupted."""

    task: Task
    corruption: Corruption | None
    labelled: Labelled

    @property
    def key(self) -> Key:
        return self.task.name, self.corruption

    @property
    def items(self) -> Items:
        return self.labelled.items

    @property
    def labels(self) -> Tensor:
        return self.labelled.labels


@dataclass(frozen=True)
class Choice:
    """What is taken of the suite's data: a split of each task, clean and (for each corruption) corrupted."""

    split: str
    loading: LoadOptions
    corrupt: tuple[Corruption | None, ...] = (None,)


def chosen(suite: Suite, tasks: Sequence[str] | None, split: str) -> tuple[Task, ...]:
    """The tasks to evaluate, in the suite's order; each must have the split."""
    picked = named_tasks(suite, tasks)
    for task in picked:
        check_split(task, split, suite)
    return picked


def named_tasks(suite: Suite, names: Sequence[str] | None) -> tuple[Task, ...]:
    """The tasks of these names (None: all), in the suite's order. Raises UsageError for a name that no task has."""
    tasks = {task.name: task for task in suite.tasks}
    for name in names or ():
        if name not in tasks:
            raise unknown_name("task", name, tasks, where=suite.where)
    picked = tuple(task for task in suite.tasks if names is None or task.name in names)
    if not picked:
        raise UsageError("no task is left to evaluate", where=suite.where, hint=f"known: {', '.join(tasks)}")
    return picked


def check_split(task: Task, split: str, suite: Suite) -> None:
    """Raises UsageError for a task without the split."""
    if split not in task.splits:
        hint = f"it has {', '.join(task.splits)}"
        raise UsageError(f"task `{task.name}` has no split `{split}`", where=task.place or suite.where, hint=hint)


def portions(
    tasks: Sequence[Task], choice: Choice, prepare: Prepare, *, reading: Callable[[str], None]
) -> Iterator[list[list[DataSet]]]:
    """Loads all data sets, a portion at a time. Within a portion, those with equal inputs are one list.

    `reading` hears which one is next.
    """
    portion: list[list[DataSet]] = []
    held = 0
    for corruption in choice.corrupt:
        for task in tasks:
            reading(f"{task.name}, {corruption.name}" if corruption else task.name)
            held += _join(portion, _loaded(task, corruption, choice, prepare))
            if held > AT_ONCE:
                yield portion
                portion, held = [], 0
    if portion:
        yield portion


def _loaded(task: Task, corruption: Corruption | None, choice: Choice, prepare: Prepare) -> DataSet:
    try:
        labelled = load_labelled(task, choice.split, prepare, replace(choice.loading, corrupt=corruption))
    except Mismatch as error:  # items that are not for this backbone
        raise Mismatch(f"task `{task.name}`: {error.what}", where=error.where, hint=error.hint) from error
    return DataSet(task, corruption, labelled)


def _join(portion: list[list[DataSet]], data: DataSet) -> int:
    """Adds a data set to those with the same inputs, whose memory it then shares; returns the bytes it adds."""
    for group in portion:
        shared = group[0].items
        if same_inputs(shared, data.items):
            items = replace(data.items, inputs=shared.inputs)
            group.append(replace(data, labelled=replace(data.labelled, items=items)))
            return 0
    portion.append([data])
    return sum(tensor.nbytes for tensor in data.items.inputs.values())


def same_inputs(one: Items, other: Items) -> bool:
    """Whether two tasks look at the same pictures or texts in the same order, whatever their labels."""
    if one.inputs.keys() != other.inputs.keys():
        return False
    pairs = [(one.inputs[name], other.inputs[name]) for name in one.inputs]
    return all(torch.equal(a[:1], b[:1]) for a, b in pairs) and all(torch.equal(a, b) for a, b in pairs)
