"""How one update is spread over processes: which shards each takes, and what they put together afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.adaptation.components import Effective
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.processes import Group

OfTasks = Mapping[str, Mapping[str, Tensor]]
"""Gradients of the tasks' own parameters, by task and name."""


@dataclass(frozen=True, slots=True)
class Share:
    """One task of an update: `items` of it in all, `shards` those that this process takes; `divided` where others take
    some too."""

    side: TaskSide
    items: int
    shards: tuple[Tensor, ...]
    divided: bool


def dealt(group: Group, batches: Sequence[tuple[TaskSide, Tensor]]) -> list[Share]:
    """Every task with this process's shards of it, maybe none: all shards in their order, in runs of equal length to
    one. So tasks stay whole but at the ends of runs, and the shards of one task alone are spread over all processes."""
    processes = max(1, group.size // len(batches))
    pieces = [tuple(side.shards(batch, processes)) for side, batch in batches]
    runs = group.bounds(sum(map(len, pieces)))
    first, last = runs[group.rank]
    shares, start = [], 0
    for (side, batch), own in zip(batches, pieces, strict=True):
        stop = start + len(own)
        whole = any(low <= start and stop <= high for low, high in runs)
        mine = own[max(first - start, 0) : max(last - start, 0)]
        shares.append(Share(side, len(batch), mine, divided=not whole))
        start = stop
    return shares


def kept_by_all(group: Group, shares: Sequence[Share], kept: Sequence[int]) -> list[int]:
    """How many items the filter keeps of each task, from how many it keeps of this process's."""
    if not any(share.divided for share in shares):
        return list(kept)
    if all(share.side.objective.filter == "none" for share in shares):
        return [share.items for share in shares]
    (total,) = group.sum_in_order([torch.tensor(kept)])
    return [int(count) for count in total]


def tallied_by_all(group: Group, tallies: Sequence[Tensor]) -> list[Tensor]:
    """The tasks' tallies over all processes."""
    return group.sum_in_order(tallies)


def summed(
    group: Group, pulled: Effective | None, own: OfTasks, sides: Sequence[TaskSide]
) -> tuple[Effective | None, OfTasks]:
    """The gradients of what shapes the weights, and of these tasks' own parameters, over all processes.

    What has no gradient on any of them has none afterwards.
    """
    if group.size == 1:
        return pulled, own
    names = sorted(pulled.gates) if pulled is not None else []
    shaping = [pulled.coefficients, *(pulled.gates[name] for name in names)] if pulled is not None else []
    given = _with_gradients(group, own, sides)
    mine = [own.get(side.name, {}).get(name, torch.zeros_like(side.own[name])) for side, name in given]
    total = group.sum_in_order([*shaping, *mine])
    if pulled is not None:
        pulled = Effective(total[0], dict(zip(names, total[1:], strict=False)))
    found: dict[str, dict[str, Tensor]] = {}
    for (side, name), grad in zip(given, total[len(shaping) :], strict=True):
        found.setdefault(side.name, {})[name] = grad
    return pulled, found


def _with_gradients(group: Group, own: OfTasks, sides: Sequence[TaskSide]) -> list[tuple[TaskSide, str]]:
    """The tasks' own parameters that have a gradient in some process."""
    every = [(side, name) for side in sides for name in side.own]
    (counts,) = group.sum_in_order([torch.tensor([int(name in own.get(side.name, {})) for side, name in every])])
    return [pair for pair, count in zip(every, counts.tolist(), strict=True) if count]
