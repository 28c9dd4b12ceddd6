"""Experts beside the base and each other, in numbers: how close they are, and who belongs together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from taskmerge.diagnosis.measure import Measured
from taskmerge.experts.classes import CLASSES
from taskmerge.numerics.likeness import ALIKE, UNLIKE, Kin, among, groups, kin, medians, pooled_cosines
from taskmerge.types import Matrix


@dataclass(frozen=True, slots=True)
class Closeness:
    """An expert beside the base: cosine and relative norm ‖τ‖ / ‖θ₀‖ over what both have, the (lower) medians of its
    matrices' cosines and of the ratios of their lengths, the names of those with cosines below 0.5, the share of
    changed entries by class of tensors, and the share of ‖τ‖² that is the base's rounding to the expert's type. None
    where there is no such number."""

    kin: Kin
    cosine: float | None
    median: float | None
    scale: float | None
    relative_norm: float | None
    matrices: int
    unlike: tuple[str, ...]
    changed: Mapping[str, float]
    rounding: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts: cosine of their task vectors (without a base: of their weights), the median cosine of the weights of
    matrices, how far they are apart relative to the first, and whether they are equal."""

    a: str
    b: str
    cosine: float | None
    median: float | None
    relative_distance: float | None
    equal: bool


@dataclass(frozen=True)
class Kinship:
    """What was measured, as numbers for people; `bound` are the experts that are differences from this very base
    (adapters, task vectors), of which weights tell nothing."""

    measured: Measured
    bound: frozenset[str]

    @cached_property
    def medians(self) -> Matrix:
        """Of the cosines of weights; index 0 is the base, where there is one."""
        return medians(self.measured.cosines)

    @cached_property
    def cosines(self) -> Matrix:
        """Of task vectors, without a base of weights, over everything."""
        return pooled_cosines(self.measured.inner, self.measured.squares)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.measured.tasks

    @property
    def among_experts(self) -> Matrix:
        """The median cosines of the experts' weights alone."""
        return self.medians[self.measured.based :, self.measured.based :]

    @cached_property
    def closeness(self) -> dict[str, Closeness]:
        """Every expert beside the base; nothing without one."""
        places = enumerate(self.tasks) if self.measured.based else ()
        return {task: self._closeness(place) for place, task in places}

    def _closeness(self, place: int) -> Closeness:
        found, row = self.measured, place + 1
        base, step, inner = (float(m[at]) for m, at in (
            (found.squares, (0, row)), (found.squares, (row, 0)), (found.inner, (0, row))
        ))  # fmt: skip
        length = math.sqrt(max(0.0, base + 2 * inner + step))
        own = found.cosines[:, 0, row]
        unlike = tuple(found.matrices[index] for index in (own < UNLIKE).nonzero().flatten().tolist())
        held, changed = found.held[place], found.changed[place]
        median = _number(self.medians[0, row])
        scale = _number(medians(found.lengths[:, row] / found.lengths[:, 0]))
        to_base = kin(median, scale, shared=held.total() > 0, moved=changed.total() > 0)
        return Closeness(
            "unknown" if self.tasks[place] in self.bound else to_base,
            (base + inner) / (math.sqrt(base) * length) if base and length else None,
            median,
            scale,
            math.sqrt(step / base) if base else None,
            int((~own.isnan()).sum()),
            unlike,
            {kind: changed[kind] / held[kind] for kind in CLASSES if held[kind]},
            found.rounding[place] / step if step else None,
        )

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every two experts."""
        every = range(len(self.tasks))
        return tuple(self._pair(s, t) for s in every for t in every if s < t)

    def _pair(self, s: int, t: int) -> Pair:
        found, based = self.measured, self.measured.based
        row, column = s + based, t + based
        own, other, inner = (float(value) for value in (
            found.squares[row, column], found.squares[column, row], found.inner[row, column]
        ))  # fmt: skip
        whole = float(found.squares[0, row]) if based else own
        apart = math.sqrt(max(0.0, own + other - 2 * inner) / whole) if whole else None
        equal = bool(found.same[s, t])
        return Pair(
            self.tasks[s], self.tasks[t], _number(self.cosines[row, column]), _number(self.medians[row, column]),
            0.0 if equal else apart, equal,
        )  # fmt: skip

    # --- who belongs together ----------------------------------------------------------------------------------

    def of_kin(self, *kinds: Kin) -> list[int]:
        """The experts that are this to the base."""
        return [place for place, task in enumerate(self.tasks) if self.closeness[task].kin in kinds]

    @cached_property
    def strangers(self) -> list[tuple[str, ...]]:
        """The sets of experts that are close to each other and not to the base: fine-tunings of something else."""
        found = among(self.of_kin("far", "unrelated"), self.among_experts >= ALIKE) if self.measured.based else []
        return [self._named(group) for group in found]

    @cached_property
    def families(self) -> list[tuple[str, ...]]:
        """The experts in sets that are no strangers to each other: they share tensors, and medians allow it."""
        close = self.measured.shared & ~(self.among_experts < UNLIKE)
        return [self._named(group) for group in groups(close)]

    def _named(self, places: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.tasks[place] for place in places)


def _number(value: Tensor) -> float | None:
    """A number as JSON has it."""
    return float(value) if torch.isfinite(value) else None
