"""What an adaptation would do: everything is opened and checked, two real updates are measured, nothing is kept."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from math import ceil

import torch

from taskmerge.adaptation.folder import Folder
from taskmerge.adaptation.learnables import COEFFICIENTS, MASKS, RELAXED
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.opening import Opened, features_of
from taskmerge.adaptation.sides import ADAPTER, BLOCK, HEAD
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.checkpoint.disk import temporary_folder
from taskmerge.data.items import Items
from taskmerge.methods.adaptive import Heads, Parts
from taskmerge.numerics.memory import peak_memory
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.workflows.adapt_request import AdaptRequest
from taskmerge.workflows.adapted import AdaptRunning, Begun, begin, place_of, usual_every

MEASURED = 2
"""Updates that are made: the second one counts, since the first one also pays for what is made once."""
OWN = {HEAD: "head parameters", BLOCK: "block parameters", ADAPTER: "adapter parameters"}
ASKING = "asking the expert of"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What would be learnt, on how many items, and what it would cost.

    `items` are those that are learnt from, by task; `learnt` counts values by kind; `update_seconds` is one update
    (None: there are none), `seconds` are those of each phase without scoring, `memory` and `device_memory` bytes at
    the peak. `shorter` says what would shorten it.
    """

    method: str
    output: str
    device: str
    items: Mapping[str, int]
    learnt: Mapping[str, int]
    updates: int
    update_seconds: float | None
    seconds: Mapping[str, float]
    memory: int
    device_memory: int | None
    shorter: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, object]:
        """The same as plain values, for --json."""
        return {**asdict(self), "total_seconds": self.total}


def dry_run(asked: AdaptRequest, running: AdaptRunning) -> DryRun:
    """Opens and checks all that a run would, and measures two updates; writes in a temporary folder alone.

    Raises what the run would raise, but for what is in the way of its output.
    """
    watch = _Watch(running.doing)
    with temporary_folder() as folder, ExitStack() as stack:
        place = place_of(asked, running)
        quiet = replace(running, cache=None, doing=watch.doing)
        learning = begin(asked, quiet, Folder(folder, place, resumes=False), stack)
        whole: list[Opened] = []

        def cut(opened: Opened) -> Opened:
            whole.append(opened)  # it stays in memory, as in a run
            return _few(opened, asked.parts, asked.spec)

        begun = learning.prepared(stack, cut)
        watch.doing("two updates")
        records = list(islice(begun.adaptation.updates(), MEASURED))
        watch.doing("one look")
        rest = {task.task.name: len(task.items) for task in whole[0].tasks}
        costs = _Costs(begun, rest, watch.seconds, records[-1].seconds if records else None, _per_item(begun))
        seconds, device = costs.phases(asked), learning.device
        return DryRun(
            method=asked.spec.method, output=str(place), device=device.type, items=costs.training(asked.spec),
            learnt=learnt(begun.adaptation, asked.parts), updates=costs.updates(asked), update_seconds=costs.update,
            seconds=seconds, memory=costs.memory(), device_memory=_device_memory(device),
            shorter=tuple(shorter(asked, seconds, device.type)), notes=tuple(learning.notes),
        )  # fmt: skip


def learnt(adaptation: Adaptation, parts: Parts) -> dict[str, int]:
    """How many values of each kind are learnt; bits of masks count as one each. Heads may be solved for at the end."""
    values = {name: value for name, value in adaptation.on_weights.values.items() if value.requires_grad}
    counts = {
        "coefficients": sum(value.numel() for name, value in values.items() if name == COEFFICIENTS),
        "mask bits": sum(value.numel() for name, value in values.items() if name.startswith(MASKS)),
        "entries of a shared mask": sum(value.numel() for name, value in values.items() if name.startswith(RELAXED)),
        **{told: _own(adaptation.sides, prefix) for prefix, told in OWN.items()},
    }
    if parts.refit and not counts[OWN[HEAD]]:
        counts[OWN[HEAD]] = sum(value.numel() for side in adaptation.sides for value in side.head.parameters())
    return {name: count for name, count in counts.items() if count}


def _own(sides: Sequence[TaskSide], prefix: str) -> int:
    return sum(value.numel() for side in sides for name, value in side.own.items() if name.startswith(prefix))


# --- fewer items -----------------------------------------------------------------------------------------------


def _few(opened: Opened, parts: Parts, spec: AdaptSpec) -> Opened:
    """As many items of each task as two batches need, held-out ones included; all where there are no more."""
    share = 1 - spec.held_out if spec.stop is not None else 1.0
    count = ceil(MEASURED * parts.batch_size / share) + 1
    return replace(opened, tasks=tuple(replace(task, items=_first(task.items, count)) for task in opened.tasks))


def _first(items: Items, count: int) -> Items:
    inputs = {name: whole[:count] for name, whole in items.inputs.items()}
    return replace(items, inputs=inputs, indices=items.indices[:count])


# --- costs -----------------------------------------------------------------------------------------------------


@dataclass
class _Watch:
    """The seconds of each phase, by what is said of it when it begins."""

    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.perf_counter)
    _phase: str = "opening"

    def doing(self, activity: str) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._began
        self._phase, self._began = activity, now
        self.tell(activity)


@dataclass(frozen=True)
class _Costs:
    """What was measured on few items: `whole` is how many each task has, `looked` the seconds of phases, `update` those
    of one update, `per_item` those of one item's features without gradients."""

    begun: Begun
    whole: Mapping[str, int]
    looked: Mapping[str, float]
    update: float | None
    per_item: float

    def training(self, spec: AdaptSpec) -> dict[str, int]:
        """Items that are learnt from, by task."""
        return {name: count - int(_held(spec) * count) for name, count in self.whole.items()}

    def updates(self, asked: AdaptRequest) -> int:
        """Updates of the whole run; one pass over the items takes more than it would over the few of here."""
        horizon, parts = self.begun.adaptation.horizon, asked.parts
        if parts.iterations is None:
            most = max(self.training(asked.spec).values())
            horizon = replace(horizon, iterations=ceil(most / parts.batch_size))
        return horizon.total(len(self.whole))

    def phases(self, asked: AdaptRequest) -> dict[str, float]:
        """Seconds of each phase of the whole run."""
        more = self.per_item * sum(self._left(side) for side in self.begun.adaptation.sides)
        frozen = any(side.frozen is not None or side.short is not None for side in self.begun.adaptation.sides)
        asking = sum(seconds for activity, seconds in self.looked.items() if activity.startswith(ASKING))
        found = {
            "reading items": self.looked["reading items"],
            "reading and merging experts": self.looked["reading experts"] + self.looked.get("merging", 0.0),
            "asking experts": asking + more,
            "starting": self._starting(asked.parts) + (more if frozen else 0.0),
            "updates": (self.update or 0.0) * self.updates(asked),
        }
        if asked.parts.refit:
            found["heads at the end"] = self.per_item * sum(self.whole.values())
        if asked.spec.stop is not None:
            total = self.updates(asked)
            looks = 2 + total // (asked.spec.every or usual_every(total))
            found["looking at held-out items"] = looks * self.per_item * _held(asked.spec) * sum(self.whole.values())
        return found

    def memory(self) -> int:
        """Bytes of this process's peak, and what the experts would say of the items that were left out here."""
        return peak_memory() + sum(self._left(side) * _bytes_per_item(side) for side in self.begun.adaptation.sides)

    def _left(self, side: TaskSide) -> int:
        return self.whole[side.name] - len(side.items)

    def _starting(self, parts: Parts) -> float:
        """Seconds before the first update; heads that are solved for take longer on more items."""
        heads = parts.of(Heads)
        if not isinstance(heads, Heads) or heads.start != "fitted":
            return self.looked["learning"]
        few = sum(len(side.items) for side in self.begun.adaptation.sides)
        return self.looked["learning"] * sum(self.whole.values()) / few


def _held(spec: AdaptSpec) -> float:
    return spec.held_out if spec.stop is not None else 0.0


def _bytes_per_item(side: TaskSide) -> int:
    kept = [side.teacher.outputs, side.teacher.features, *([side.frozen.values] if side.frozen is not None else [])]
    below = side.short.hidden.nbytes // len(side.items) if side.short is not None else 0
    return below + sum(values[0].nbytes for values in kept if len(values))


def _per_item(begun: Begun) -> float:
    """Seconds that the features of one item take without gradients."""
    side = begun.adaptation.sides[0]
    started = time.perf_counter()
    features_of(begun.place, side.items, module=side.module)
    return (time.perf_counter() - started) / len(side.items)


def _device_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def shorter(asked: AdaptRequest, seconds: Mapping[str, float], device: str) -> list[str]:
    """What would shorten the longest phase of a run, the options as they are written."""
    longest = max(seconds, key=lambda phase: seconds[phase])
    parts, spec = asked.parts, asked.spec
    if longest != "updates":
        few = "fewer items (--limit); what experts say of an item is kept for later runs (--cache)"
        return [few] if longest in ("reading items", "asking experts", "starting") else []
    found = []
    if parts.iterations is not None and parts.iterations > 1:
        found.append(f"half the horizon: --iterations {parts.iterations // 2}")
    if parts.batch_size > 1:
        found.append(f"half the batch: --batch-size {parts.batch_size // 2}")
    if device == "cpu":
        found.append("a GPU: --device cuda")
    elif spec.amp is None:
        found.append("bfloat16: --amp bf16")
    if parts.of(Heads) is not None:
        found.append("no updates at all: --method heads solves for heads alone")
    return found
