"""θ = origin + Σ_t λ_t D_t, D_t dense or U_t diag(b_t ∘ s_t) V_tᵀ, and its adjoint: adaptation and `merge --from` alike.

Everything here is a function on tensors. With G = ∂L/∂θ at the formed weights, `pull` gives ∂L/∂λ_t = ⟨G, D_t⟩ and
∂L/∂b_ti = λ_t s_ti u_tiᵀ G v_ti: what automatic differentiation of the formula gives, without a graph over T copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskmerge.numerics.spectral import Factors

Gates = Tensor
"""[K]: what each of a tensor's stored components is multiplied by, those of the first task first; 0 or 1 if hard."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What adaptation has learnt of the merged weights: `coefficients` [T] of every tensor, and where components were
    chosen `masks` bool [M, T, k] of its M matrices. Tasks are in canonical order; names are those of units.

    A tensor without an entry has none: it stays at the origin.
    """

    tasks: tuple[str, ...]
    coefficients: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, name: str) -> "LearnedTensor":
        """What was learnt of one tensor."""
        zeros = torch.zeros(len(self.tasks))
        return LearnedTensor(self.coefficients.get(name, zeros), self.masks.get(name))


@dataclass(frozen=True, slots=True)
class LearnedTensor:
    """The coefficients [T] of one tensor, and the masks bool [M, T, k] of its matrices (None: all components)."""

    coefficients: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Triplets:
    """The stored components of the T task matrices of one matrix, side by side: D_t = Σ_{i of t} b_i s_i u_i v_iᵀ.

    `left` [K, m] holds the u_i, `values` [K] the s_i, `right` [K, n] the v_i, `tasks` int64 [K] whose each is.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    tasks: Tensor

    @classmethod
    def of(cls, factors: Sequence[Factors]) -> "Triplets":
        """The triplets of all tasks."""
        counts = torch.tensor([len(one.s) for one in factors], device=factors[0].s.device)
        return cls(
            torch.cat([one.u.mT for one in factors]),
            torch.cat([one.s for one in factors]),
            torch.cat([one.vt for one in factors]),
            torch.repeat_interleave(torch.arange(len(factors), device=counts.device), counts),
        )

    def form(self, coefficients: Tensor, gates: Gates | None = None) -> Tensor:
        """Σ_t λ_t D_t, [m, n]: one product over the components whose gate is not zero."""
        scales = coefficients.to(self.values)[self.tasks] * self.values
        if gates is None:
            return (self.left * scales[:, None]).mT @ self.right
        active = gates.nonzero().squeeze(1)
        scales = (scales * gates)[active, None]
        if len(active) == len(self.values):
            return (self.left * scales).mT @ self.right
        return (self.left[active] * scales).mT @ self.right[active]

    def pull(self, grad: Tensor, coefficients: Tensor, gates: Gates | None = None) -> tuple[Tensor, Tensor]:
        """(∂L/∂λ [T], ∂L/∂b [K]) of the gradient [m, n] of the formed matrix; components that are off have one too."""
        reached = self.values * ((self.left @ grad) * self.right).sum(1)  # s_i u_iᵀ G v_i
        owned = reached if gates is None else reached * gates
        of_tasks = torch.zeros(len(coefficients), dtype=reached.dtype, device=reached.device)
        return of_tasks.index_add_(0, self.tasks, owned), coefficients.to(reached)[self.tasks] * reached


def form_dense(rows: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_t λ_t D_t of dense rows [T, n], added up in the order of the tasks."""
    total = torch.zeros_like(rows[0])
    for row, coefficient in zip(rows, coefficients.tolist(), strict=True):
        total.add_(row, alpha=coefficient)
    return total


def pull_dense(grad: Tensor, rows: Tensor) -> Tensor:
    """∂L/∂λ [T] = ⟨G, D_t⟩ of the gradient [n] of the formed tensor."""
    return rows @ grad
