"""Batches without labels: which items, and which order of tasks, is a function of seed, task and update alone.

A task's items are taken without replacement, in passes over all of them, each in a random order of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from taskmerge.data.items import Items
from taskmerge.errors import UsageError
from taskmerge.seeds import uniform_at
from taskmerge.types import Inputs

ORDERS_KEPT = 64
"""Passes whose order is kept, for the updates that follow: one or two a task."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some items of one task: their inputs, and their places int64 [B] among its items."""

    task: str
    inputs: Inputs
    places: Tensor


def places(seed: int, task: str, update: int, *, count: int, batch_size: int) -> Tensor:
    """The places int64 [batch_size], among a task's `count` items, of the batch of one update (from 0).

    Where a pass ends within a batch the next one begins, so that such a batch may hold an item twice. Raises UsageError
    for a batch larger than the task.
    """
    if not 1 <= batch_size <= count:
        what = f"a batch of {batch_size} cannot be taken from the {count} items of task `{task}`"
        raise UsageError(what, where="--batch-size", hint=f"give 1 to {count}")
    number, start = divmod(update * batch_size, count)
    stop = start + batch_size
    order = _order_of_pass(seed, task, number, count)[start:stop]
    if stop <= count:
        return order.clone()
    return torch.cat([order, _order_of_pass(seed, task, number + 1, count)[: stop - count]])


def batch_of(items: Items, task: str, places: Tensor) -> Batch:
    """The batch of the items at `places`, as they are stored."""
    return Batch(task, {name: whole[places] for name, whole in items.inputs.items()}, places)


def task_order(seed: int, update: int, tasks: Iterable[str]) -> tuple[str, ...]:
    """The tasks in the order of one update; which of two comes first does not depend on the others."""
    return tuple(sorted(tasks, key=lambda task: (float(uniform_at(seed, task, f"turn {update}", 0, 1)), task)))


@lru_cache(ORDERS_KEPT)
def _order_of_pass(seed: int, task: str, number: int, count: int) -> Tensor:
    """A permutation int64 [count] of the task's places."""
    return torch.from_numpy(np.argsort(uniform_at(seed, task, f"pass {number}", 0, count).numpy(), kind="stable"))
