"""What the numbers say of the experts: whose fine-tunings they are, which are equal, which are of something else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from taskmerge.diagnosis.findings import Finding
from taskmerge.diagnosis.measure import Measured
from taskmerge.errors import BadFile, listed
from taskmerge.experts.classes import CLASSES
from taskmerge.numerics.likeness import ALIKE, UNLIKE, Kin, among, groups, kin, medians, pooled_cosines
from taskmerge.types import Matrix

ROUNDED = 0.25
"""Share of a task vector's square from which on its rounding is worth a warning."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Closeness:
    """An expert beside the base: cosine and relative norm ‖τ‖ / ‖θ₀‖ over what both have, the (lower) median cosine of
    its matrices, the names of those below 0.5, the share of changed entries by class of tensors, and the share of ‖τ‖²
    that is the base's rounding to the expert's type. None where there is no such number."""

    kin: Kin
    cosine: float | None
    median: float | None
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
        to_base = kin(median, shared=held.total() > 0, moved=found.moved[place] > 0)
        return Closeness(
            "unknown" if self.tasks[place] in self.bound else to_base,
            (base + inner) / (math.sqrt(base) * length) if base and length else None,
            median,
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
        """The experts in sets that are no strangers to each other: they share tensors, and matrices don't contradict."""
        close = self.measured.shared & ~(self.among_experts < UNLIKE)
        return [self._named(group) for group in groups(close)]

    def _named(self, places: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.tasks[place] for place in places)

    # --- in words ----------------------------------------------------------------------------------------------

    def findings(self, base: str, where: Mapping[str, str]) -> list[Finding]:
        """What is worth a word; `base` and `where` say where the inputs lie."""
        found = [_fault(where[task], tensors) for task, tensors in self.measured.faults.items()]
        found += [_fault(base, self.measured.base_faults)] if self.measured.base_faults else []
        found += self._equal()
        if self.measured.based:
            return [*found, *self._beside_base(base), *self._one_step(), *self._rounded()]
        return [*found, *self._apart()]

    def _equal(self) -> list[Finding]:
        twins = [f"{pair.a} and {pair.b}" for pair in self.pairs if pair.equal]
        found = [Finding("warning", "weights", f"{both} are equal, entry for entry") for both in twins]
        for place, task in enumerate(self.tasks):
            if task in self.closeness and self.closeness[task].kin == "equal" and task not in self.bound:
                rest = " in all that both have" if self.measured.alone[place] else ""
                found.append(Finding("warning", "weights", f"{task} equals the base{rest}: it changes nothing"))
        return found

    def _beside_base(self, base: str) -> list[Finding]:
        """Who is probably no fine-tuning of the base, who is far from it, which of their matrices are other ones."""
        found = []
        grouped = {task for group in self.strangers for task in group}
        for group in self.strangers:
            inside = [pair.median for pair in self.pairs if {pair.a, pair.b} <= {*group} and pair.median is not None]
            outside = [one for task in group if (one := self.closeness[task].median) is not None]
            what = f"{listed(group, plain=True)} are close to each other (median cosine {_shown(min(inside))} and more)"
            what += f" and not to the base {base} (at most {_shown(max(outside))}): fine-tunings of something else"
            hint = "name what they were fine-tuned from as --base; methods about the experts' average need none"
            found.append(Finding("warning", "weights", what, hint=hint))
        for task, one in self.closeness.items():
            if one.kin == "unrelated" and task not in grouped:
                found.append(_stranger(task, one))
            if one.kin == "far" and task not in grouped:
                what = f"{task} is far from the base: median cosine {_shown(one.median)} (fine-tuning leaves {ALIKE:g} "
                what += "and more): long training, pruning, noise, or another base"
                found.append(Finding("warning", "weights", what))
            if one.unlike and one.kin in ("fine-tuning", "far"):
                what = f"{task}: {len(one.unlike)} of its {one.matrices} matrices are unlike the base's (cosine below "
                what += f"{UNLIKE:g}): {listed(one.unlike, SHOWN)}: trained anew, or emptied"
                found.append(Finding("warning", "weights", what))
            if one.kin == "unknown" and task not in self.bound:
                what = (
                    f"{task}: no matrix of it can be compared with the base's, which would tell whether it is its kin"
                )
                found.append(Finding("note", "weights", what))
        return found

    def _one_step(self) -> list[Finding]:
        """Experts with nearly the same task vector."""
        close = self.cosines[1:, 1:] >= ALIKE
        rounded = {task for task, one in self.closeness.items() if (one.rounding or 0) >= ROUNDED}
        chosen = [place for place in self.of_kin("fine-tuning") if self.tasks[place] not in rounded]
        found = []
        for group in among(chosen, close & ~self.measured.same):
            what = f"the task vectors of {listed(self._named(group), plain=True)} are nearly one (cosines from "
            what += f"{ALIKE:g} on): fine-tunings of a model between the base and them, or checkpoints of one training"
            found.append(Finding("warning", "weights", what, hint="if there is such a model, it is the better --base"))
        return found

    def _rounded(self) -> list[Finding]:
        """Experts whose task vector is in good part the rounding of a base in a finer type."""
        odd = {task: one.rounding for task, one in self.closeness.items() if (one.rounding or 0) >= ROUNDED}
        if not odd:
            return []
        shares = ", ".join(f"{task} {share:.0%}" for task, share in odd.items() if share is not None)
        what = f"the base is held in a finer type than experts: so much of ‖τ‖² is rounding: {shares}"
        return [Finding("warning", "weights", what, hint="take the base in the experts' type")]

    def _apart(self) -> list[Finding]:
        """Without a base: who is no kin of the others."""
        if len(self.families) < 2:
            return []
        sets = " | ".join(listed(family, plain=True) for family in self.families)
        what = f"these are of different starts (median cosine of matrices below {UNLIKE:g}): {sets}"
        return [Finding("warning", "weights", what, hint="merge those of one start")]


def _stranger(task: str, one: Closeness) -> Finding:
    """The warning of an expert that is probably of something else."""
    what = f"{task} is probably not a fine-tuning of this base: "
    if not one.changed:
        what, hint = what + "they have no tensor of one name and shape", "leave it out, or name another base"
    else:
        what += f"the median cosine of its {one.matrices} matrices with the base's is {_shown(one.median)} "
        what += f"(below {UNLIKE:g})"
        hint = "another start, or the same neurons in another order: leave it out, or name another base"
    return Finding("warning", "weights", what, hint=hint)


def _fault(where: str, tensors: Mapping[str, int]) -> Finding:
    """Entries that are not finite, which a merge refuses."""
    count = sum(tensors.values())
    what = f"{count:,} entr{'y is' if count == 1 else 'ies are'} NaN or infinite, in {listed(tensors, SHOWN)}"
    hint = "this checkpoint is damaged or its training diverged; leave it out"
    return Finding("refusal", "weights", what, where, hint, BadFile.exit_code)


def _number(value: Tensor) -> float | None:
    """A number as JSON has it."""
    return float(value) if torch.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
