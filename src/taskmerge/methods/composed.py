"""θ = origin + Σ_t λ_t D_t, D_t dense or U_t diag(b_t ∘ s_t) V_tᵀ, and its adjoint: in `adapt` and `merge --from`.

A dense sum may be under one mask of its entries: m / mean(m) ∘ Σ_t λ_t D_t, the mean over the whole tensor.

Everything here is a function on tensors. With G = ∂L/∂θ at the formed weights, `pull` gives ∂L/∂λ_t = ⟨G, D_t⟩ and
∂L/∂b_ti = λ_t s_ti u_tiᵀ G v_ti: what automatic differentiation of the formula gives, without a graph over T copies.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from taskmerge.errors import Mismatch
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, TaskMatrices

Gates = Tensor
"""[K]: what each of a tensor's stored components is multiplied by, those of the first task first; 0 or 1 if hard."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """What adaptation has learnt of the merged weights: `coefficients` [T] of every tensor, and where something was
    chosen `masks`: bool [M, T, k] of the components of its M matrices, or, where nothing is factored, bool [1, 1, n]
    of its entries, for all tasks. Tasks are in canonical order; names are those of units.

    A tensor without coefficients stays at the origin. Two are equal if their contents are; `shares` are the shares of
    bits that are on.
    """

    tasks: tuple[str, ...]
    coefficients: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Counts bits once: every slice of a tensor needs to know of the whole mask."""
        shares = {name: int(mask.count_nonzero()) / max(1, mask.numel()) for name, mask in self.masks.items()}
        object.__setattr__(self, "shares", shares)

    def of(self, name: str) -> "LearnedTensor":
        """What was learnt of one tensor."""
        zeros = torch.zeros(len(self.tasks))
        return LearnedTensor(self.coefficients.get(name, zeros), self.masks.get(name), self.shares.get(name, 1.0))

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 over the tasks, and names, types, shapes and bytes of everything learnt."""
        digest = hashlib.sha256("\0".join(self.tasks).encode())
        for kind, tensors in (("coefficients", self.coefficients), ("masks", self.masks)):
            for name, tensor in sorted(tensors.items()):
                digest.update(f"\n{kind}\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"sha256:{digest.hexdigest()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Learned) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True)
class LearnedTensor:
    """The coefficients [T] of one tensor, and the masks bool [M, T, k] of its matrices, or bool [1, 1, n] of its
    entries (None: all are on); `share` is that of bits that are on in the whole tensor."""

    coefficients: Tensor
    masks: Tensor | None = None
    share: float = 1.0

    def only(self, matrix: int) -> "LearnedTensor":
        """The same of one of its matrices: masks [1, T, k]."""
        return replace(self, masks=None if self.masks is None else self.masks[matrix : matrix + 1])

    def entries(self, start: int, count: int) -> "LearnedTensor":
        """The same of some of its entries: masks [1, 1, count]."""
        return replace(self, masks=None if self.masks is None else self.masks[..., start : start + count])


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

    def gates(self, mask: Tensor) -> Gates:
        """A matrix's mask bool [T, k] as gates bool [K]. Components beyond the k-th are off.

        Raises `Mismatch` where the mask switches on a component that a task does not have.
        """
        counts = torch.bincount(self.tasks, minlength=len(mask)).tolist()
        for task, count in enumerate(counts):
            if bool(mask[task, count:].any()):
                raise Mismatch(
                    f"its mask keeps component {int(mask[task].nonzero().max()) + 1} of task {task + 1}, "
                    f"which has {count}",
                    hint="the mask was learnt of other experts, or of other options: merge with those",
                )
        padded = torch.zeros(len(mask), max(*counts, mask.shape[1]), dtype=torch.bool)
        padded[:, : mask.shape[1]] = mask
        return torch.cat([row[:count] for row, count in zip(padded, counts, strict=True)]).to(self.tasks.device)

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


def form_matrix(matrices: TaskMatrices, rank: Rank, learned: LearnedTensor) -> Tensor:
    """Σ_t λ_t D_t of one matrix, [m, n]: of its leading components, those that its mask (the first) keeps."""
    triplets = Triplets.of(matrices.top(rank))
    gates = None if learned.masks is None else triplets.gates(learned.masks[0])
    return triplets.form(learned.coefficients, gates)


def form_dense(rows: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_t λ_t D_t of dense rows [T, n], added up in the order of the tasks."""
    total = torch.zeros_like(rows[0])
    for row, coefficient in zip(rows, coefficients.tolist(), strict=True):
        total.add_(row, alpha=coefficient)
    return total


def form_entries(rows: Tensor, learned: LearnedTensor) -> Tensor:
    """Σ_t λ_t D_t of dense rows [T, n], or of a slice of them, under the mask of their entries if there is one."""
    total = form_dense(rows, learned.coefficients)
    if learned.masks is None:
        return total
    return total.mul_(entry_gates(learned.masks.to(total.device), learned.share, total.dtype).view_as(total))


def entry_gates(bits: Tensor, share: float, dtype: torch.dtype) -> Gates:
    """m / mean(m): what entries are multiplied by under these bits, of all of which `share` are on."""
    return bits.to(dtype) / share


def pull_dense(grad: Tensor, rows: Tensor) -> Tensor:
    """∂L/∂λ [T] = ⟨G, D_t⟩ of the gradient [n] of the formed tensor."""
    return rows @ grad
