"""Forward and backward of tasks' batches, in shards side by side: gradients are the same for any number of threads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor, nn

from taskmerge.adaptation.spread import Share, dealt, kept_by_all, tallied_by_all
from taskmerge.adaptation.summing import Summing
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.adaptation.trace import TaskRecord
from taskmerge.models.adapters import ProbAdapter
from taskmerge.numerics import losses
from taskmerge.processes import ALONE, Group
from taskmerge.seeds import uniform_at

R = TypeVar("R")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all passes share: where they run, whether in bfloat16, the workers (None: one after the other), the
    encoder's parameters by name whose gradients are wanted, and the processes that the shards are spread over."""

    device: torch.device
    amp: bool
    pool: ThreadPoolExecutor | None
    workers: int
    shared: Mapping[str, nn.Parameter]
    seed: int = 0
    group: Group = ALONE


@dataclass(frozen=True, slots=True)
class Shard:
    """Some items of a task that went forward: `loss` [B] with its graph, and what is told of them."""

    side: TaskSide
    loss: Tensor
    kept: Tensor
    agreeing: int | None
    entropy: float | None
    predicted: Tensor | None


@dataclass
class Gradients:
    """Sums over shards, in their order: of the encoder's parameters, and of each task's own, by name."""

    shared: dict[str, Tensor]
    own: dict[str, dict[str, Tensor]]

    def add(self, task: str, own: Mapping[str, Tensor]) -> None:
        """Adds one shard's gradients of its task's own parameters; takes what it is given over."""
        mine = self.own.setdefault(task, {})
        for name, grad in own.items():
            mine[name] = mine[name].add_(grad) if name in mine else grad


def forward(setting: Setting, side: TaskSide, places: Tensor, update: int) -> Shard:
    """One shard through encoder, adapter and head, to the loss of each of its items."""
    device = setting.device
    with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=setting.amp):
        features, outputs = side.outputs(
            raw := side.features(places, device), _noise(setting, side, places, raw, update)
        )
        expert = side.expert(places, device)
        kept = side.objective.kept(outputs, expert)
        loss = side.objective.loss(features.float() if setting.amp else features, _whole(outputs, setting), expert)
        if side.penalty and isinstance(side.adapter, ProbAdapter):
            loss = loss + side.penalty * _divergence(side.adapter, raw)
    return Shard(side, loss, kept, *_told(side, outputs.detach(), expert.outputs))


def backward(shard: Shard, items: int, summing: Summing, turn: int) -> dict[str, Tensor]:
    """The gradients of Σ kept losses / items: the encoder's go into their sums, the task's own are returned by name.

    `turn` counts the shards of an update: sums are added up in this order.
    """
    total = shard.loss[shard.kept].sum() / items
    own = shard.side.own
    found: dict[str, Tensor] = {}
    with summing.turn_of(turn):
        if total.requires_grad:
            grads = torch.autograd.grad(total, [*own.values(), *summing.parameters], allow_unused=True)
            found = {name: grad for name, grad in zip(own, grads, strict=False) if grad is not None}
    return found


def passes(
    setting: Setting, batches: Sequence[tuple[TaskSide, Tensor]], update: int
) -> tuple[Gradients, dict[str, TaskRecord]]:
    """Every task's batch forward and backward: gradients of the sum of the tasks' mean losses, and what to tell.

    So many tasks at once as keep the workers busy. A task whose filter keeps nothing adds nothing. Of several processes
    each returns the gradients of its own shards, and all what is to be told of everything.
    """
    with Summing(setting.shared) as summing:
        gradients = Gradients(summing.sums, {})
        tallies: dict[str, Tensor] = {}
        turns = count()
        for shares in _groups(setting, dealt(setting.group, batches)):
            jobs = [(share.side, places) for share in shares for places in share.shards]
            shards = list(_mapped(setting, lambda job: forward(setting, *job, update), jobs))
            of_tasks = [(share, [shard for shard in shards if shard.side is share.side]) for share in shares]
            kept = kept_by_all(setting.group, shares, [_kept(own) for _, own in of_tasks])
            tallies |= {share.side.name: _tally(share.side, own) for share, own in of_tasks}
            counted = [
                (shard, items, next(turns)) for (_, own), items in zip(of_tasks, kept, strict=True)
                for shard in own if bool(shard.kept.any())
            ]  # fmt: skip
            shards.clear()
            of_tasks.clear()
            pulled = _mapped(setting, lambda job: backward(job[0], job[1], summing, job[2]), counted)
            for (shard, _, _), of_task in zip(counted, pulled, strict=True):
                gradients.add(shard.side.name, of_task)
    sides = [side for side, _ in batches]
    told = tallied_by_all(setting.group, [tallies.get(side.name, _tally(side, ())) for side in sides])
    return gradients, {side.name: _record(side, tally) for side, tally in zip(sides, told, strict=True)}


def _groups(setting: Setting, shares: Sequence[Share]) -> Iterator[list[Share]]:
    """The tasks in their order, as many at a time as have a shard for every worker.

    Those that are divided between processes come first and at once: what the filter keeps of them is counted together.
    """
    if divided := [share for share in shares if share.divided]:
        yield divided
    group: list[Share] = []
    held = 0
    for share in shares:
        if share.divided or not share.shards:
            continue
        group.append(share)
        held += len(share.shards)
        if held >= setting.workers:
            yield group
            group, held = [], 0
    if group:
        yield group


def _mapped(setting: Setting, work: Callable[[A], R], jobs: Sequence[A]) -> Iterator[R]:
    """The work over jobs, results in their order; no more under way than there are workers."""
    if setting.pool is None or len(jobs) < 2:
        yield from map(work, jobs)
        return
    waiting: list[Future[R]] = []
    for job in jobs:
        if len(waiting) == setting.workers:
            yield waiting.pop(0).result()
        waiting.append(setting.pool.submit(work, job))
    for future in waiting:
        yield future.result()


def _kept(shards: Sequence[Shard]) -> int:
    return sum(int(shard.kept.sum()) for shard in shards)


def _tally(side: TaskSide, shards: Sequence[Shard]) -> Tensor:
    """Sums over some of a task's items, float64: items, kept ones, their loss; of classes also the items with the
    expert's class, entropy, and how many are predicted to be of each."""
    sums = [
        float(sum(len(own.loss) for own in shards)), float(_kept(shards)),
        sum((float(own.loss.detach()[own.kept].sum()) for own in shards), 0.0),
    ]  # fmt: skip
    if side.task.kind != "classification":
        return torch.tensor(sums, dtype=torch.float64)
    sums.append(float(sum(own.agreeing or 0 for own in shards)))
    sums.append(sum((own.entropy or 0.0 for own in shards), 0.0))
    predicted = torch.zeros(side.teacher.outputs.shape[1], dtype=torch.float64)
    for own in shards:
        predicted += own.predicted.cpu() if own.predicted is not None else 0
    return torch.cat([torch.tensor(sums, dtype=torch.float64), predicted])


def _record(side: TaskSide, tally: Tensor) -> TaskRecord:
    """What one task's batch came to."""
    items, kept, loss = tally[:3].tolist()
    means: list[float | None] = [None, None, None]
    if side.task.kind == "classification":
        means = [*(tally[3:5] / items).tolist(), float(tally[5:].max()) / items]
    return TaskRecord(int(items), kept / items, loss / kept if kept else None, *means)


def _told(side: TaskSide, outputs: Tensor, expert: Tensor) -> tuple[int | None, float | None, Tensor | None]:
    """(items with the expert's class, sum of entropies, predictions of each class); nothing of values and maps."""
    if side.task.kind != "classification":
        return None, None, None
    classes = outputs.argmax(1)
    agreeing = int((classes == expert.argmax(1)).sum())
    return agreeing, float(losses.entropy(outputs.float()).sum()), torch.bincount(classes, minlength=outputs.shape[1])


def _noise(setting: Setting, side: TaskSide, places: Tensor, features: Tensor, update: int) -> Tensor | None:
    """Standard normal numbers for adapters that draw: a function of seed, task, update and item."""
    if not isinstance(side.adapter, ProbAdapter):
        return None
    width = features[0].numel()
    rows = [uniform_at(setting.seed, side.name, f"noise {update}", int(place) * width, width) for place in places]
    uniform = torch.stack(rows).clamp(1e-7, 1 - 1e-7).to(features)
    return (2**0.5 * torch.erfinv(2 * uniform - 1)).view(features.shape)


def _divergence(adapter: ProbAdapter, features: Tensor) -> Tensor:
    """KL of the drawn bias from the standard normal distribution, summed over features, one value an item."""
    mean, log_variance = adapter.moments(features)
    return (0.5 * (mean.square() + log_variance.exp() - log_variance - 1)).flatten(1).sum(1)


def _whole(outputs: Tensor, setting: Setting) -> Tensor:
    """Outputs in full precision, where losses are taken."""
    return outputs.float() if setting.amp else outputs
