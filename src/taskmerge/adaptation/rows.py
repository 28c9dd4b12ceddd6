"""Turns experts into the components that adaptation learns to combine, tensor by tensor."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from taskmerge.adaptation.components import Component, Composed, Dense, Factored, Masked
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import located
from taskmerge.experts.matrices import task_matrices
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows
from taskmerge.experts.tensors import Unit
from taskmerge.methods.adaptive import Components, Trimmed, Truncated
from taskmerge.methods.composed import Triplets
from taskmerge.methods.ties import Trim, elected_rows, measure
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.selection import part_of
from taskmerge.specs.merge import Svd

R = TypeVar("R")
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Sized:
    """A unit and what it holds at its peak, in bytes."""

    unit: Unit
    memory: int


@dataclass(frozen=True)
class Plan:
    """What is composed: the units, which of them are matrices to be factored, what components are wanted.

    `shared_mask` asks for dense rows that one mask over parameters can switch. `svd` as in merges.
    """

    units: Sequence[Unit]
    factored: Collection[str]
    components: Components
    shared_mask: bool = False
    svd: Svd = "exact"


def composed(
    plan: Plan, rows: Rows, spots: Mapping[str, str], *, workers: int, in_flight: int,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Composed, ...]:  # fmt: skip
    """Every unit with its components, in the plan's order. `spots`: a tensor's name -> its name in the encoder.

    Reads each expert once, several units at a time within `in_flight` bytes; factors are those that merges use, taken
    from factor files where there are any. Raises what reading experts raises.
    """
    jobs = [Sized(unit, unit.numel * 4 * (2 * len(rows.experts) + 4)) for unit in plan.units]
    trim = _trim(plan, rows) if isinstance(plan.components, Trimmed) else None

    def work(job: Sized) -> Composed:
        with located(f"`{job.unit.name}`"):
            made = _composed(plan, rows, job.unit, trim, spots)
        progress(job.unit.numel)
        return made

    with single_threaded(factoring=isinstance(plan.components, Truncated)):
        return tuple(parallel(jobs, work, workers=workers, in_flight=in_flight, stop=rows.stop))


def _composed(plan: Plan, rows: Rows, unit: Unit, trim: Trim | None, spots: Mapping[str, str]) -> Composed:
    """One unit: its origin and its component."""
    origin, component = _factored(plan, rows, unit) if unit.name in plan.factored else _dense(plan, rows, unit, trim)
    return Composed(unit, origin, component, _spots(unit, spots))


def _spots(unit: Unit, spots: Mapping[str, str]) -> tuple[tuple[str, slice], ...]:
    """Where the parts of a unit go; a part that the encoder has no place for goes nowhere."""
    placed, offset = [], 0
    for part in unit.parts:
        if part.name in spots:
            placed.append((spots[part.name], slice(offset, offset + part.numel)))
        offset += part.numel
    return tuple(placed)


def _dense(plan: Plan, rows: Rows, unit: Unit, trim: Trim | None) -> tuple[Tensor, Component]:
    """Task vectors as they are, or trimmed; the experts' own weights where these are of half precision."""
    origin, read = rows.of(unit)
    origin = origin.clone()
    if trim is not None or plan.shared_mask:
        own = elected_rows(read, trim) if trim is not None and read.numel() else read.clone()
        return origin, Masked(own) if plan.shared_mask else Dense(own)
    half = _half(rows, unit)
    if half is None:
        return origin, Dense(read.clone())
    _, weights = replace(rows, space="weight").of(unit)
    return origin, Dense(weights.to(half), minus=origin)


def _half(rows: Rows, unit: Unit) -> torch.dtype | None:
    """The half-precision type that all experts have of a unit, if memory is to be saved without losing a digit."""
    if rows.dtype != torch.float32 or any(expert.kind != "weight" for expert in rows.experts):
        return None
    held = {
        DTYPES[expert.specs[part.name].dtype] if part.name in expert.specs else torch.float32
        for expert in rows.experts for part in unit.parts
    }  # fmt: skip
    (only,) = held if len(held) == 1 else (None,)
    return only if only in HALF else None


def _factored(plan: Plan, rows: Rows, unit: Unit) -> tuple[Tensor, Component]:
    """The singular triplets of a unit's matrices, portion by portion."""
    rank = plan.components.rank if isinstance(plan.components, Truncated) else None
    if rank is None:
        raise ValueError("only truncated components are factored")
    origins, matrices = [], []
    for start, count in unit.portions():
        origin, read = rows.of(unit, start, count)
        origins.append(origin.clone())
        for piece in unit.cut(read):
            made = task_matrices(rows, unit, piece, start, svd=plan.svd)
            matrices.append(Triplets.of(made.top(rank)))
    return torch.cat(origins), Factored(unit, tuple(matrices))


def _trim(plan: Plan, rows: Rows) -> Trim:
    """The whole model's thresholds and majority sign, as TIES' authors take them."""
    components = plan.components
    density = components.density if isinstance(components, Trimmed) else 1.0

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        return (f(part_of(rows.of(unit, tallied=False)[1], share)) for unit in plan.units if unit.numel)

    return measure(scan, density, "next")
