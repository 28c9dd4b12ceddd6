"""A tensor's merged form while it learns: its origin, what each task adds to it, and where the result goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from taskmerge.experts.tensors import Unit
from taskmerge.methods.composed import Triplets, form_dense, pull_dense

Gates = Tensor
"""[K]: what every stored component (or, of dense vectors, every entry) is multiplied by."""


class Component(Protocol):
    """What the tasks add to one tensor's origin: Σ_t λ_t D_t, flat [n], and the gradients of coefficients and gates.

    `stored` is the number K of components that gates may switch, 0 where there are none.
    """

    @property
    def stored(self) -> int: ...

    def form(self, coefficients: Tensor, gates: Gates | None) -> Tensor:
        """Σ_t λ_t D_t [n]."""
        ...

    def pull(self, grad: Tensor, coefficients: Tensor, gates: Gates | None) -> tuple[Tensor, Tensor | None]:
        """(∂L/∂λ [T], ∂L/∂gates [K]) of the gradient [n] of the formed tensor."""
        ...


@dataclass(frozen=True)
class Dense:
    """Task vectors as they are, in memory once: differences [T, n], or (`minus`) the experts' own half-precision
    weights, from which `minus` [n] is taken off on the way."""

    rows: Tensor
    minus: Tensor | None = None

    @property
    def stored(self) -> int:
        return 0

    def form(self, coefficients: Tensor, gates: Gates | None) -> Tensor:
        if self.minus is None:
            return form_dense(self.rows, coefficients)
        total = torch.zeros_like(self.minus)
        for row, coefficient in zip(self.rows, coefficients.tolist(), strict=True):
            total.add_(row, alpha=coefficient)  # promoted as it is added: no copy
        return total.sub_(self.minus, alpha=float(coefficients.sum()))

    def pull(self, grad: Tensor, coefficients: Tensor, gates: Gates | None) -> tuple[Tensor, Tensor | None]:
        if self.minus is None:
            return pull_dense(grad, self.rows), None
        shared = self.minus @ grad
        return torch.stack([row.to(grad) @ grad for row in self.rows]) - shared, None


@dataclass(frozen=True)
class Masked:
    """Dense task vectors [T, n] under one mask [n] that the tasks share: Σ_t λ_t (m ∘ τ_t)."""

    rows: Tensor

    @property
    def stored(self) -> int:
        return self.rows.shape[1]

    def form(self, coefficients: Tensor, gates: Gates | None) -> Tensor:
        total = form_dense(self.rows, coefficients)
        return total if gates is None else total.mul_(gates)

    def pull(self, grad: Tensor, coefficients: Tensor, gates: Gates | None) -> tuple[Tensor, Tensor | None]:
        masked = grad if gates is None else grad * gates
        return pull_dense(masked, self.rows), grad * form_dense(self.rows, coefficients)

    def bits(self, gates: Tensor, tasks: int) -> Tensor:
        """The gates as bool [1, 1, n], the same for all tasks."""
        return (gates > 0).view(1, 1, -1).cpu()


@dataclass(frozen=True)
class Factored:
    """The stored triplets of a tensor's matrices, in the order of its portions; gates follow that order.

    `unit` says how matrices lie in the tensor.
    """

    unit: Unit
    matrices: tuple[Triplets, ...]

    @property
    def stored(self) -> int:
        return sum(len(triplets.values) for triplets in self.matrices)

    def form(self, coefficients: Tensor, gates: Gates | None) -> Tensor:
        formed = [
            triplets.form(coefficients, own) for triplets, own in zip(self.matrices, self._split(gates), strict=True)
        ]
        return self.unit.whole(formed)

    def pull(self, grad: Tensor, coefficients: Tensor, gates: Gates | None) -> tuple[Tensor, Tensor | None]:
        pulled = [
            triplets.pull(own, coefficients, open_)
            for triplets, own, open_ in zip(self.matrices, self._cut(grad), self._split(gates), strict=True)
        ]
        of_tasks = torch.stack([first for first, _ in pulled]).sum(0)
        return of_tasks, None if gates is None else torch.cat([second for _, second in pulled])

    def starts(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """bool [K]: of every matrix and task the first so many components, `kept` [M][T]."""
        return torch.cat([
            _first(triplets, counts) for triplets, counts in zip(self.matrices, kept, strict=True)
        ])  # fmt: skip

    def gates(self, bits: Tensor) -> Tensor:
        """Masks bool [M, T, k] as bool [K]. Raises `Mismatch` for one of a component that is not stored."""
        return torch.cat([triplets.gates(mask) for triplets, mask in zip(self.matrices, bits, strict=True)])

    def bits(self, gates: Tensor, tasks: int) -> Tensor:
        """The gates as bool [M, T, k], k the largest count; what a task lacks is off."""
        split = [own for own in self._split(gates) if own is not None]
        return stacked_bits(split, [triplets.tasks for triplets in self.matrices], tasks)

    def _split(self, gates: Gates | None) -> list[Gates | None]:
        if gates is None:
            return [None] * len(self.matrices)
        return list(torch.split(gates, [len(triplets.values) for triplets in self.matrices]))

    def _portions(self) -> int:
        return self.unit.matrices // self.unit.pieces if self.unit.kind == "stack" else 1

    def _cut(self, grad: Tensor) -> list[Tensor]:
        """The gradient's matrices, in order."""
        portions = grad.view(self._portions(), -1)
        return [piece[0].reshape(self.unit.matrix) for portion in portions for piece in self.unit.cut(portion[None])]


def stacked_bits(gates: Sequence[Tensor], tasks_of: Sequence[Tensor], tasks: int) -> Tensor:
    """bool [M, T, k] from the gates [K] of M matrices and whose each component is."""
    counts = [torch.bincount(owner, minlength=tasks) for owner in tasks_of]
    most = max((int(count.max()) for count in counts if len(count)), default=0)
    bits = torch.zeros(len(gates), tasks, most, dtype=torch.bool)
    for matrix, (own, owner) in enumerate(zip(gates, tasks_of, strict=True)):
        for task in range(tasks):
            chosen = own[owner == task] > 0
            bits[matrix, task, : len(chosen)] = chosen.cpu()
    return bits


def _first(triplets: Triplets, counts: Sequence[int]) -> Tensor:
    """bool [K]: the first so many components of each task."""
    places = [
        torch.arange(int((triplets.tasks == task).sum()), device=triplets.tasks.device) < count
        for task, count in enumerate(counts)
    ]
    return torch.cat(places)


@dataclass(frozen=True)
class Composed:
    """One tensor that is merged: its unit, the origin [n] in the arithmetic's dtype, and what the tasks add.

    `spots` are where its parts stand in the encoder: a module's tensor, and the elements of the unit that it takes.
    """

    unit: Unit
    origin: Tensor
    component: Component
    spots: tuple[tuple[str, slice], ...]

    @property
    def name(self) -> str:
        return self.unit.name


@dataclass(frozen=True)
class Effective:
    """What the learnables come to at one update: coefficients [L, T] in the order of the tensors, and gates by name."""

    coefficients: Tensor
    gates: Mapping[str, Gates] = field(default_factory=dict)
