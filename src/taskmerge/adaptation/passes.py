"""Forward and backward of a task's batch, in shards side by side: gradients are the same for any number of threads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from taskmerge.adaptation.tasks import TaskSide
from taskmerge.adaptation.trace import TaskRecord
from taskmerge.models.adapters import ProbAdapter
from taskmerge.numerics import losses
from taskmerge.seeds import uniform_at

R = TypeVar("R")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all passes share: where they run, whether in bfloat16, the workers (None: one after the other), and the
    encoder's parameters by name whose gradients are wanted."""

    device: torch.device
    amp: bool
    pool: ThreadPoolExecutor | None
    workers: int
    shared: Mapping[str, nn.Parameter]
    seed: int = 0


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

    def add(self, task: str, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Adds one shard's; takes what it is given over."""
        for mine, more in ((self.shared, shared), (self.own.setdefault(task, {}), own)):
            for name, grad in more.items():
                if name in mine:
                    mine[name].add_(grad)
                else:
                    mine[name] = grad


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


def backward(setting: Setting, shard: Shard, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of Σ kept losses / count, of the encoder's parameters and of the task's own, by name."""
    total = shard.loss[shard.kept].sum() / count
    names, values = [*setting.shared, *shard.side.own], [*setting.shared.values(), *shard.side.own.values()]
    if not total.requires_grad:
        return {}, {}
    grads = torch.autograd.grad(total, values, allow_unused=True)
    given = dict(zip(names, grads, strict=True))
    shared = {name: grad for name in setting.shared if (grad := given[name]) is not None}
    return shared, {name: grad for name in shard.side.own if (grad := given[name]) is not None}


def passes(
    setting: Setting, batches: Sequence[tuple[TaskSide, Tensor]], update: int
) -> tuple[Gradients, dict[str, TaskRecord]]:
    """Every task's batch forward and backward: gradients of the sum of the tasks' mean losses, and what to tell.

    So many tasks at once as keep the workers busy. A task whose filter keeps nothing adds nothing.
    """
    gradients = Gradients({}, {})
    records: dict[str, TaskRecord] = {}
    for group in _groups(setting, batches):
        jobs = [(side, places) for side, batch in group for places in side.shards(batch)]
        shards = list(_mapped(setting, lambda job: forward(setting, *job, update), jobs))
        counted: list[tuple[Shard, int]] = []
        for side, _ in group:
            own = [shard for shard in shards if shard.side is side]
            records[side.name] = _record(own)
            kept = sum(int(shard.kept.sum()) for shard in own)
            counted += [(shard, kept) for shard in own if bool(shard.kept.any())]
        shards.clear()
        pulled = _mapped(setting, lambda job: backward(setting, *job), counted)
        for (shard, _), (shared, of_task) in zip(counted, pulled, strict=True):
            gradients.add(shard.side.name, shared, of_task)
    return gradients, records


def _groups(setting: Setting, batches: Sequence[tuple[TaskSide, Tensor]]) -> Iterator[list[tuple[TaskSide, Tensor]]]:
    """The tasks in their order, as many at a time as have a shard for every worker."""
    group: list[tuple[TaskSide, Tensor]] = []
    held = 0
    for side, batch in batches:
        group.append((side, batch))
        held += sum(1 for _ in side.shards(batch))
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


def _record(shards: Sequence[Shard]) -> TaskRecord:
    """What one task's batch came to."""
    items = sum(len(own.loss) for own in shards)
    kept = sum(int(own.kept.sum()) for own in shards)
    total = sum(float(own.loss.detach()[own.kept].sum()) for own in shards)
    agreeing = [own.agreeing for own in shards if own.agreeing is not None]
    entropies = [own.entropy for own in shards if own.entropy is not None]
    predicted = [own.predicted for own in shards if own.predicted is not None]
    largest = float(torch.stack(predicted).sum(0).max()) / items if predicted else None
    return TaskRecord(
        items, kept / items, total / kept if kept else None, sum(agreeing) / items if agreeing else None,
        sum(entropies) / items if entropies else None, largest,
    )  # fmt: skip


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
