"""Puts a run together: the merged encoder at its start, every task's side of it, the learnables and their optimiser."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from taskmerge.adaptation.components import Composed
from taskmerge.adaptation.learnables import OnWeights, fresh
from taskmerge.adaptation.loop import Adaptation, Horizon, detached
from taskmerge.adaptation.opening import Experts, Opened, Place, fill_kept
from taskmerge.adaptation.passes import Setting
from taskmerge.adaptation.sides import ADAPTER, BLOCK, HEAD, block_names, side_of
from taskmerge.adaptation.state import Optimised
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.adaptation.teachers import Teacher
from taskmerge.adaptation.weights import Weights, live_tensors
from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.errors import UsageError
from taskmerge.methods.adaptive import Block, Parts
from taskmerge.methods.composed import Learned
from taskmerge.models.fill import fill, lend
from taskmerge.numerics.device import cores
from taskmerge.numerics.lapack import settle_thread, single_threaded
from taskmerge.processes import ALONE, Group
from taskmerge.specs.adapt import AdaptSpec

GROUPS: Mapping[str, str] = {HEAD: "heads", ADAPTER: "adapter", BLOCK: "block"}
"""Whose learning rate the parameters of a task's own parts have."""


@dataclass(frozen=True)
class Workers:
    """Threads that shards and tensors are spread over, each computing on one core; none on a GPU."""

    pool: ThreadPoolExecutor | None
    count: int


@contextmanager
def workers(device: torch.device, threads: int | None, group: Group = ALONE) -> Iterator[Workers]:
    """The workers of a run: the processes of a group share this machine's cores. Inside, arithmetic is single-threaded:
    results are the same for any number of them."""
    if device.type != "cpu":
        yield Workers(None, 1)
        return
    count = threads or max(1, cores() // group.local_size)
    with single_threaded(factoring=False), ThreadPoolExecutor(count, "adapt", settle_thread) as pool:
        yield Workers(pool, count)


@contextmanager
def all_cores(group: Group, threads: int | None) -> Iterator[None]:
    """Inside, this process works on all cores while the others wait for it: torchrun leaves each of them one thread."""
    before = torch.get_num_threads()
    if group.size > 1:
        torch.set_num_threads(threads or cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def built(
    opened: Opened, experts: Experts, teachers: Mapping[str, Teacher], composed: Sequence[Composed], parts: Parts,
    spec: AdaptSpec, place: Place, workers: Workers, *, init: Checkpoint | None = None, start: Learned | None = None,
    blocks: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}), names: Collection[str] | None = None,
) -> Adaptation:  # fmt: skip
    """The run before its first update. `init` fills the encoder where nothing is composed; `start` are
    coefficients and masks to start from; `blocks` are own blocks' tensors to start from, by task; `names` are those
    of the model's tensors: others are the base's.

    Raises UsageError for a batch larger than a task has items.
    """
    fill(place.backbone, init or opened.complete, opened.base)
    if init is None:
        fill_kept(experts, place)
    if names is not None and opened.base is not None:
        lend(place.backbone, names, opened.base)  # what is not merged is no expert's: `eval` has the base's there too
    on_weights = fresh(parts, composed, len(experts.rows.experts), spec.seed, start)
    block = parts.of(Block)
    names = block_names(place.module, block.layer) if isinstance(block, Block) else ()
    weights = Weights(
        place.module, composed, live_tensors(place.module), workers.pool, workers.count, spec.amp == "bf16"
    )
    if composed:
        weights.form(detached(on_weights.settled()))
    merged = {name: value.detach() for name, value in place.module.named_parameters() if name in names}
    sides = tuple(
        side_of(task, teachers[task.task.name], parts, spec, place, {**merged, **blocks.get(task.task.name, {})})
        for task in opened.tasks
    )
    shared = _shared(place.module, composed, names) if parts.shapes_weights else {}
    for parameter in shared.values():
        parameter.requires_grad_(True)
    iterations = _one_pass(sides, parts.batch_size) if parts.iterations is None else parts.iterations
    horizon = Horizon(iterations=iterations, batch_size=parts.batch_size, updates=parts.updates, seed=spec.seed)
    _check_batches(sides, horizon)
    rates = spec.rates(parts, horizon.total(len(sides)))
    setting = Setting(place.device, spec.amp == "bf16", workers.pool, workers.count, shared, spec.seed, place.group)
    return Adaptation(
        sides, weights, on_weights, Optimised(_groups(on_weights, sides), rates), horizon, setting, spec.project
    )


def _one_pass(sides: Sequence[TaskSide], batch_size: int) -> int:
    """The iterations in which the task with the most items is seen once."""
    return -(-max(len(side.places) for side in sides) // batch_size)


def _shared(module: nn.Module, composed: Sequence[Composed], own: Sequence[str]) -> dict[str, nn.Parameter]:
    """The encoder's parameters whose gradients lead to what is learnt: merged ones that no task has for itself."""
    merged = {name for one in composed for name, _ in one.spots}
    return {name: parameter for name, parameter in module.named_parameters() if name in merged and name not in set(own)}


def _groups(on_weights: OnWeights, sides: Sequence[TaskSide]) -> dict[str, dict[str, nn.Parameter]]:
    """The learnables by the rate that they have."""
    groups: dict[str, dict[str, nn.Parameter]] = {kind: {} for kind in ("coefficients", "masks", "relaxed")}
    for name, value in on_weights.values.items():
        groups[name.partition("/")[0]][name] = value
    for side in sides:
        for name, value in side.own.items():
            kind = next(kind for prefix, kind in GROUPS.items() if name.startswith(prefix))
            groups.setdefault(kind, {})[f"tasks/{side.name}/{name}"] = value
    return groups


def _check_batches(sides: Sequence[TaskSide], horizon: Horizon) -> None:
    """Refuses batches that some task cannot fill, before anything is learnt."""
    for side in sides:
        if horizon.iterations and horizon.batch_size > len(side.places):
            what = f"a batch of {horizon.batch_size} is more than the {len(side.places)} items of `{side.name}`"
            raise UsageError(what, where="--batch-size", hint=f"give 1 to {len(side.places)}")
