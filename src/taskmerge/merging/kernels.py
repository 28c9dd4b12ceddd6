"""Binds a chain of methods to one point of the grid: stack in, merged tensor out."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from taskmerge.experts.rows import Rows
from taskmerge.merging.plan import TensorJob
from taskmerge.methods.checks import check_result
from taskmerge.methods.contract import Method
from taskmerge.methods.kernel import Kernel, accepted
from taskmerge.methods.options import Value, bind, settled
from taskmerge.numerics.selection import Scan
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.seeds import uniform_at
from taskmerge.specs.merge import SCALE, MergeSpec

Handed = Mapping[str, Any]
"""What the engine knows of a slice, by the names that kernels ask for it (`methods/kernel.py`)."""


@dataclass
class BoundPoint:
    """One point of the grid: every method of the chain with its options and, after the first pass, its statistic.

    `point` are the values that were given, `values` those that run, of all options by the names that they go by.
    """

    chain: tuple[Method, ...]
    options: tuple[dict[str, Value], ...]
    factor: Callable[..., float] | None
    point: Mapping[str, Value]
    values: Mapping[str, Value]
    alone: bool
    shared: WeakKeyDictionary[TaskMatrices, tuple[str, object]] = field(default_factory=WeakKeyDictionary)
    statistics: list[object] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def last(self) -> Method:
        return self.chain[-1]

    def transform(self, stack: Tensor, handed: Handed, until: int | None = None) -> Tensor:
        """The stack after the transforms of the chain (DARE, Breadcrumbs), or after the first `until` of them.

        A transform treats each task by itself, so that one row at a time is enough; the stack itself is overwritten
        unless other grid points need it.
        """
        for index, method in enumerate(self.chain[:-1][:until]):
            result = stack if self.alone else torch.empty_like(stack)
            for task in range(len(stack)):
                own = {**handed, **self._own(index), "uniform": partial(handed["uniform_of"], task)}
                row = stack[task : task + 1]
                result[task : task + 1] = _call(method, method.kernel, row, own, row)
            stack = result
        return stack

    def merge_stack(self, stack: Tensor, handed: Handed, treatment: str) -> Tensor:
        """One merged tensor (a merged task vector, unless the method merges weights)."""
        stack = self.transform(stack, handed)
        kernel = self.last.elsewhere if treatment == "elsewhere" else self.last.kernel
        if treatment == "origin" or kernel is None:
            return torch.zeros_like(stack[0])
        return self._scaled(_call(self.last, kernel, stack, {**handed, **self._own(-1)}, stack[0]), len(stack), handed)

    def merge_matrices(self, matrices: TaskMatrices, handed: Handed) -> Tensor:
        """One merged matrix."""
        own = {**handed, **self._own(-1), "shared": self._shared(matrices)}
        return self._scaled(_call(self.last, self.last.kernel, matrices, own, matrices.stack[0]), len(matrices), handed)

    def _shared(self, matrices: TaskMatrices) -> object:
        """What the method shares between grid points; kept for the point before, and as long as the matrices."""
        costly = self.last.shared
        if costly is None:
            return None
        key = self.shared_by
        kept = None if self.alone else self.shared.get(matrices)
        if kept is not None and kept[0] == key:
            return kept[1]
        value: object = costly(matrices, **accepted(costly, self.options[-1]))
        self.remarks.extend(getattr(value, "notes", ()))
        if not self.alone:
            self.shared[matrices] = (key, value)
        return value

    @property
    def shared_by(self) -> str:
        """The options in which the points agree that share the costly part of their work."""
        return repr(sorted(accepted(self.last.shared, self.options[-1]).items())) if self.last.shared else ""

    def first_pass(self, scan: Callable[["BoundPoint", int], Scan], weights: Tensor, known: dict[str, object]) -> None:
        """Fills the statistics; a later method's pass sees what the earlier transforms leave.

        `known` holds what other grid points have found: points that differ in other options share it.
        """
        self.statistics = []
        for index, one in enumerate(self.chain):
            if one.statistic is None:
                self.statistics.append(None)
                continue
            own = accepted(one.statistic, {**self.options[index], "weights": weights})
            before = [(other.name, sorted(self.options[i].items())) for i, other in enumerate(self.chain[:index])]
            key = repr((before, one.name, sorted((name, value) for name, value in own.items() if name != "weights")))
            if key not in known:
                known[key] = one.statistic(scan(self, index), **own)
            self.statistics.append(known[key])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the first passes have to say (counts kept against counts asked for), and what matrices gave rise to."""
        first = (note for statistic in self.statistics for note in getattr(statistic, "notes", ()))
        remarks = sorted(Counter(self.remarks).items())
        return (*first, *(f"{count} matrices: {remark}" for remark, count in remarks))

    def _own(self, index: int) -> dict[str, object]:
        statistic = self.statistics[index] if self.statistics else None
        return {**self.options[index], "statistic": statistic}

    def _scaled(self, merged: Tensor, tasks: int, handed: Handed) -> Tensor:
        """The merged task vector times the depth factor of --lines."""
        return merged if self.factor is None else merged * self.factor(handed["position"], tasks)


def handed(rows: Rows, spec: MergeSpec, job: TensorJob, start: int, shape: tuple[int, ...], piece: int = 0) -> Handed:
    """What kernels are handed by name, of a job's elements from `start` on, or of a piece of the portion that begins
    there; `uniform_of` draws one task's row."""
    unit, count = job.unit, math.prod(shape)

    def uniform_of(task: int) -> Tensor:
        drawn = uniform_at(spec.seed, rows.experts[task].task, unit.name, start, count)
        return rows.placed(drawn.view(1, *shape))

    def uniform() -> Tensor:
        return torch.cat([uniform_of(task) for task in range(len(rows.experts))])

    given = {"weights": rows.weights, "uniform": uniform, "uniform_of": uniform_of, "position": unit.position}
    if spec.learned is None:
        return given
    learned = spec.learned.of(unit.name)
    own = learned.only(unit.matrix_at(start, piece)) if job.factored else learned.entries(start, count)
    return {**given, "learned": own}


def _call(method: Method, kernel: Kernel, data: Any, handed: Handed, like: Tensor) -> Tensor:
    """What a method's kernel makes of a stack or of matrices: a tensor like `like`, or a `UsageError`."""
    return check_result(method, kernel(data, **accepted(kernel, handed)), like)


def bind_points(spec: MergeSpec, tasks: int | None = None) -> list[BoundPoint]:
    """All points of the grid, bound, with the numbers that run on so many tasks where these are known; under --lines a
    method's own coefficient is 1 unless it was given."""
    chain, members = spec.chain(), spec.members()
    by_depth = members[-1][0].factor if spec.lines else None
    bound: list[BoundPoint] = []
    shared: WeakKeyDictionary[TaskMatrices, tuple[str, object]] = WeakKeyDictionary()
    for point in spec.points():
        options = [_bound(method, names, point, tasks, scaled=by_depth is not None) for method, names in members]
        every = zip(members, options, strict=True)
        values = {name: own[theirs] for (_, names), own in every for name, theirs in names.items()}
        factor = None if by_depth is None else partial(by_depth, **accepted(by_depth, options[-1]))
        bound.append(BoundPoint(chain, tuple(options[: len(chain)]), factor, point, values, False, shared))
    bound[0].alone = len(bound) == 1
    return bound


def _bound(
    method: Method, names: Mapping[str, str], point: Mapping[str, Value], tasks: int | None, *, scaled: bool
) -> dict[str, Value]:
    """The options of one method at a point of the grid; `scaled`: by depth, in place of its own coefficient."""
    own = {theirs: point[name] for name, theirs in names.items() if name in point}
    usual = {SCALE: 1.0} if scaled and SCALE in method.settings else {}
    options = bind(method, {**usual, **own})
    return options if tasks is None else settled(method, options, tasks)


def largest_first(points: Sequence[BoundPoint]) -> list[BoundPoint]:
    """The points ordered so that a rank that is asked for later is contained in one that is already factored, and
    those that share work follow each other."""
    from taskmerge.numerics.rank import Rank

    def weight(point: BoundPoint) -> tuple[float, str]:
        rank = point.options[-1].get("rank")
        if not isinstance(rank, Rank):
            return 0.0, point.shared_by
        return {"energy": 0.0, "ratio": -rank.value, "count": -rank.value}[rank.kind], point.shared_by

    return sorted(points, key=weight)


def earlier_points(spec: MergeSpec, first: BoundPoint) -> list[BoundPoint]:
    """The points of a replayed point's grid that were computed before it: they left their factorisations to it."""
    if not spec.grid:
        return []
    names = spec.factored()
    points = largest_first(bind_points(replace(spec, options={**spec.options, **names})))
    key = [{name: point.options[0][name] for name in names} for point in points]
    own = {name: first.options[0][name] for name in names}
    return points[: key.index(own)] if own in key else []
