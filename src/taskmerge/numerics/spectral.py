"""Truncated factorisations of the T task matrices of one tensor: exact, computed once, reused by every rank."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.leading import Leading, Means, leading, leading_batched, singular_values
from taskmerge.numerics.randomized import randomized
from taskmerge.numerics.rank import Rank

SLACK = 1e-12  # 19 of 20 equal values hold 0.95 of the energy, whichever way the sum was rounded


class Factors(NamedTuple):
    """The leading singular triplets of one matrix: u [m, k], s [k] descending, vt [k, n]."""

    u: Tensor
    s: Tensor
    vt: Tensor


class Solve(NamedTuple):
    """How one matrix was factored: how many components, by what means, largest ‖Aᵀu - s v‖ / s, and 1 - s_{k+1}/s_k."""

    task: int
    components: int
    means: Means
    residual: float
    gap: float


class TaskMatrices:
    """The T task matrices of one tensor, factored at most once whatever ranks are asked for.

    `stack` is [T, p, q]. `full` is min(m, n) of the tensor that the stack stands for: larger than min(p, q) when
    the matrices were compressed to their common low-rank subspace (adapters, factor files). `svd` is "exact", or
    "randomized" for block Krylov iteration. `given` are leading triplets that are known already, one a task.

    Asking for the largest rank first computes each factorisation once.
    """

    def __init__(
        self,
        stack: Tensor,
        *,
        full: int | None = None,
        svd: Literal["exact", "randomized"] = "exact",
        given: Sequence[Factors] | None = None,
    ) -> None:
        self.stack = stack
        self.full = min(stack.shape[-2:]) if full is None else full
        self.svd = svd
        self._tall = stack.shape[-2] >= stack.shape[-1]
        self._factored = {task: self._from_factors(factors) for task, factors in enumerate(given or ())}
        self._values: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.stack)

    def top(self, rank: Rank | int) -> list[Factors]:
        """Per task the leading triplets; fewer than asked where min(p, q) or the numerical rank is smaller."""
        return [self._factors(triplets) for triplets in self._leading(self._counts(rank))]

    def singular_values(self) -> list[Tensor]:
        """Per task all min(p, q) singular values, descending."""
        if self._values is None:
            self._values = [singular_values(matrix) for matrix in self.stack]
        return self._values

    def truncated_sum(self, rank: Rank | int, weights: Sequence[float]) -> Tensor:
        """Σ_t w_t SVD_k(A_t), [p, q]: one product of inner size Σ k_t."""
        truncated = self._leading(self._counts(rank))
        near = torch.cat([triplets.near for triplets in truncated])
        far = torch.cat([triplets.far * weight for triplets, weight in zip(truncated, weights, strict=True)])
        return far.mT @ near if self._tall else near.mT @ far

    @property
    def solves(self) -> list[Solve]:
        """How each matrix that was needed so far has been factored."""
        return [_solve(task, triplets) for task, triplets in sorted(self._factored.items())]

    def _counts(self, rank: Rank | int) -> list[int]:
        """The number of components that a rank means for each matrix."""
        if isinstance(rank, int):
            return [rank] * len(self)
        if rank.kind == "energy":
            return [energy_rank(s, rank.value) for s in self.singular_values()]
        return [rank.resolve(self.full)] * len(self)

    def _leading(self, counts: Sequence[int]) -> list[Leading]:
        """The first `counts` triplets of each matrix: from what is known, else computed."""
        wanted = [min(count, *self.stack.shape[-2:]) for count in counts]
        self._compute([task for task, k in enumerate(wanted) if not self._answers(task, k)], wanted)
        return [self._factored[task].first(k) for task, k in enumerate(wanted)]

    def _answers(self, task: int, k: int) -> bool:
        return task in self._factored and self._factored[task].answers(k)

    def _compute(self, tasks: Sequence[int], wanted: Sequence[int]) -> None:
        """Factors some matrices, each for its own count; what was known before stays known."""
        sizes = {task: len(triplets.s) for task, triplets in self._factored.items()}
        counts = {task: max(wanted[task], sizes.get(task, 0)) for task in tasks}
        if self.svd == "randomized":
            self._factored.update({task: randomized(self.stack[task], counts[task]) for task in tasks})
        elif self.stack.is_cpu:
            self._one_by_one(tasks, counts, sizes)
        elif tasks:
            batch = leading_batched(self.stack[list(tasks)], max(counts.values()))
            self._factored.update(zip(tasks, batch, strict=True))

    def _one_by_one(self, tasks: Sequence[int], counts: Mapping[int, int], sizes: Mapping[int, int]) -> None:
        """`_compute` on the CPU. Goes to float64 at once where float32 has failed: for a smaller cut of the same
        matrix, or, because the spectrum falls too steeply, for the matrix before it."""
        steep = False
        for task in tasks:
            precise = steep or sizes.get(task) == counts[task]
            self._factored[task] = leading(self.stack[task], counts[task], precise=precise)
            steep = self._factored[task].steep

    def _factors(self, triplets: Leading) -> Factors:
        """Leading triplets as u, s, vt; s > 0 in all of them."""
        far = triplets.far / triplets.s[:, None]
        return Factors(far.mT, triplets.s, triplets.near) if self._tall else Factors(triplets.near.mT, triplets.s, far)

    def _from_factors(self, given: Factors) -> Leading:
        """Triplets that came from elsewhere, to be used as far as they go."""
        kept = int((given.s > 0).sum())
        u, s, vt = given.u[:, :kept].to(self.stack), given.s[:kept].to(self.stack), given.vt[:kept].to(self.stack)
        near, far = (vt, u.mT) if self._tall else (u.mT, vt)
        return Leading(near, far * s[:, None], s, torch.zeros_like(s), 0.0, False, "given")


def _solve(task: int, triplets: Leading) -> Solve:
    s = triplets.s
    if len(s) == 0:
        return Solve(task, 0, triplets.means, 0.0, 1.0)
    return Solve(task, len(s), triplets.means, float(triplets.residual.max()), 1 - triplets.beyond / float(s[-1]))


def energy_rank(s: Tensor, share: float) -> int:
    """The least k with Σ_{i<=k} s_i² >= share Σ s_i²; 0 for a zero matrix."""
    energy = s.double().square().cumsum(0)
    if len(s) == 0 or energy[-1] == 0:
        return 0
    return int((energy < (share - SLACK) * energy[-1]).sum()) + 1 if share < 1 else int((s > 0).sum())
