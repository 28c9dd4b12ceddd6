"""The loop: batch, form, forward, objective, pull, step, record."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskmerge.adaptation.components import Effective
from taskmerge.adaptation.learnables import COEFFICIENTS, MASKS, OnWeights
from taskmerge.adaptation.passes import Gradients, Setting, passes
from taskmerge.adaptation.spread import summed
from taskmerge.adaptation.state import AdaptState, Optimised
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.adaptation.trace import StepRecord, TaskRecord
from taskmerge.adaptation.weights import Weights
from taskmerge.data.batches import task_order
from taskmerge.methods.adaptive import Updates

ZERO = 1e-5
"""Coefficients below it count as zero, as in the Tinting paper."""
COMPARED = 50
"""Updates between two looks at whether all processes hold the same values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """How long and in what order: an iteration visits every task once, in one update or in one a task."""

    iterations: int
    batch_size: int
    updates: Updates
    seed: int = 0

    def total(self, tasks: int) -> int:
        """How many updates there are."""
        return self.iterations * (tasks if self.updates == "sequential" else 1)

    def turn(self, update: int, sides: Sequence[TaskSide]) -> tuple[int, list[TaskSide]]:
        """(iteration, the tasks of one update): all, or the one whose turn it is in the iteration's random order.

        All come in the order of their names: sums of gradients don't depend on how a suite lists its tasks.
        """
        if self.updates == "joint":
            return update, sorted(sides, key=lambda side: side.name)
        iteration, place = divmod(update, len(sides))
        order = task_order(self.seed, iteration, (side.name for side in sides))
        return iteration, [side for side in sides if side.name == order[place]]


@dataclass
class Adaptation:
    """A run: what stays fixed, the learnables under their optimiser, and how far it has come."""

    sides: Sequence[TaskSide]
    weights: Weights
    on_weights: OnWeights
    optimised: Optimised
    horizon: Horizon
    setting: Setting
    project: bool = False
    update: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"skipped": 0, "flips": 0})

    @property
    def total(self) -> int:
        return self.horizon.total(len(self.sides))

    def updates(self) -> Iterator[StepRecord]:
        """Every update that is left, as it is made. Between two of them the run may be saved, or looked at."""
        while self.update < self.total:
            started = time.perf_counter()
            iteration, turn = self.horizon.turn(self.update, self.sides)
            batches = [(side, side.batch(self.horizon.seed, iteration, self.horizon.batch_size)) for side in turn]
            effective = self.form()
            gradients, told = passes(self.setting, batches, self.update)
            skipped = self._pull(effective, gradients, told)
            flips = 0 if skipped else self._step()
            self.counts["skipped"] += skipped is not None
            self.counts["flips"] += flips
            self.update += 1
            self._compare()
            yield self._record(iteration, told, flips, skipped, time.perf_counter() - started)

    def start(self) -> StepRecord:
        """What stands before the first update."""
        return self._record(0, {}, 0, None, 0.0)

    def form(self) -> Effective:
        """Forms the merged weights of the next update, where they may have changed, and says of what."""
        effective = self.on_weights.effective(self.update)
        if self.weights.composed:
            self.weights.form(detached(effective))
        return effective

    def settle(self) -> None:
        """Forms the merged weights as they would be written now: what looks at the model looks at these."""
        if self.weights.composed:
            self.weights.form(detached(self.on_weights.settled()))

    def snapshot(self) -> AdaptState:
        """Where the run is."""
        return self.optimised.snapshot(self.update, self.counts)

    def restore(self, state: AdaptState) -> None:
        """Continues from there."""
        self.optimised.restore(state)
        self.update, self.counts = state.update, {**self.counts, **state.counts}

    def _pull(self, effective: Effective, gradients: Gradients, told: Mapping[str, TaskRecord]) -> str | None:
        """Brings gradients to the learnables; the reason where this update is to be skipped."""
        self.optimised.clear()
        if all(record.loss is None for record in told.values()):
            return "the filter keeps nothing"
        if any(record.loss is not None and not abs(record.loss) < float("inf") for record in told.values()):
            return "a loss is not finite"
        pulled = None
        if self.setting.shared and self.on_weights.parts.shapes_weights:
            pulled = self.weights.pull(gradients.shared, detached(effective))
        turn = [side for side in self.sides if side.name in told]
        pulled, own = summed(self.setting.group, pulled, gradients.own, turn)
        if pulled is not None:
            self.on_weights.push(effective, pulled)
        for side in turn:
            for name, grad in own.get(side.name, {}).items():
                side.own[name].grad = grad
        return None if self.optimised.finite() else "a gradient is not finite"

    def _step(self) -> int:
        """Moves the learnables; how many mask bits flipped."""
        masks = [value for name, value in self.on_weights.values.items() if name.startswith(MASKS)]
        before = [value.detach() > 0 for value in masks]
        self.optimised.step()
        coefficients = self.on_weights.values[COEFFICIENTS]
        if self.project and coefficients.requires_grad:
            with torch.no_grad():
                coefficients.clamp_(0, 1)
        return sum(int(((value > 0) != bits).sum()) for value, bits in zip(masks, before, strict=True))

    def _compare(self) -> None:
        """Raises BadNumber where processes have come to different values, now and then and at the end."""
        if self.update % COMPARED == 0 or self.update == self.total:
            self.setting.group.check_same(self.optimised.values.values(), f"update {self.update}")

    def _record(
        self, iteration: int, told: Mapping[str, TaskRecord], flips: int, skipped: str | None, seconds: float
    ) -> StepRecord:
        """The update that was just made."""
        values = self.on_weights.values[COEFFICIENTS].detach()
        learnt = self.on_weights.values[COEFFICIENTS].requires_grad
        return StepRecord(
            self.update, iteration, dict(told), _statistics(values) if learnt else {}, flips,
            self.on_weights.kept(), skipped, seconds,
        )  # fmt: skip


def detached(effective: Effective) -> Effective:
    """The same values without their graphs."""
    return Effective(effective.coefficients.detach(), {name: gates.detach() for name, gates in effective.gates.items()})


def _statistics(values: Tensor) -> dict[str, float]:
    if not values.numel():
        return {}
    return {
        "mean": float(values.mean()), "low": float(values.min()), "high": float(values.max()),
        "zero": float((values.abs() < ZERO).double().mean()),
    }  # fmt: skip
