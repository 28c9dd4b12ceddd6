"""Every task matrix factored once, kept in a folder, and read back a few components at a time (E5).

Memory holds the encoder and one sum of the encoder's size, whatever the number of ranks, coefficients and tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from taskmerge.experts.matrices import task_matrices
from taskmerge.experts.rows import Rows
from taskmerge.merging.plan import TensorJob
from taskmerge.methods.cart import cancel
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors
from taskmerge.types import Space
from taskmerge.workflows.sweeps.encoder import Encoder
from taskmerge.workflows.sweeps.scratch import keep, path_of

Counts = Callable[[int], int]
"""How many components a point keeps of a matrix, by its smaller side r; r itself is the whole matrix."""


def kept(rank: Rank) -> Counts:
    """The leading components that a rank keeps."""
    return rank.resolve


def beyond(rank: Rank) -> Counts:
    """The components beside the `rank` lowest ones: r - k, k the integer (E2)."""
    return lambda full: full - rank.resolve(full)


@dataclass(frozen=True)
class Factored:
    """The origin of every unit, and the leading triplets of its task matrices, in files of `folder`.

    About the base (`delta`) or the average (`centred`). Of other units, and of matrices taken whole, the sum of the
    task vectors is kept; about the average it is zero.
    """

    encoder: Encoder
    space: Space
    folder: Path

    @property
    def sums_to_zero(self) -> bool:
        """Whether the task vectors of every unit cancel."""
        return self.encoder.rows(self.space).recentred

    def write(self, most: Counts) -> "Factored":
        """Factors everything, `most(r)` components of a matrix. Reads every expert once."""
        rows = self.encoder.rows(self.space)

        def work(job: TensorJob) -> None:
            tensors = self._factored(job, rows, most) if job.factored else self._dense(job, rows)
            keep(self.folder, job, tensors)

        self.encoder.each(work, rows, factoring=True)
        return self

    def _dense(self, job: TensorJob, rows: Rows) -> dict[str, Tensor]:
        origin, vectors = rows.of(job.unit, tallied=False)
        found = {"origin": origin.cpu().clone()}
        return found if self.sums_to_zero else {**found, "sum": vectors.sum(0).cpu()}

    def _factored(self, job: TensorJob, rows: Rows, most: Counts) -> dict[str, Tensor]:
        """Origin, sum, and `MATRIX/TASK/left` [k, m] (times s), `…/right` [k, n]."""
        origins, sums, found = [], [], dict[str, Tensor]()
        place = 0
        for start, count in job.unit.portions():
            origin, vectors = rows.of(job.unit, start, count, tallied=False)
            origins.append(origin.cpu().clone())
            sums.append(None if self.sums_to_zero else vectors.sum(0).cpu())
            for piece in job.unit.cut(vectors):
                matrices = task_matrices(rows, job.unit, piece, start, svd=self.encoder.svd)
                still = self.space == "centred" and cancel(matrices, rows.weights)
                triplets = [] if still else matrices.top(most(min(job.unit.matrix)))
                for task, one in zip(self.encoder.tasks, triplets, strict=False):
                    found |= {f"{place}/{task}/{side}": tensor for side, tensor in _sides(one).items()}
                place += 1
        found["origin"] = torch.cat(origins)
        whole = [one for one in sums if one is not None]
        return {**found, "sum": torch.cat(whole)} if whole else found

    def read(self, job: TensorJob, names: Sequence[str]) -> dict[str, Tensor]:
        """Some of a unit's tensors, those that it has."""
        with self._opened(job) as file:
            held = frozenset(file.keys())
            return {name: file.get_tensor(name).to(self.encoder.device) for name in names if name in held}

    def _opened(self, job: TensorJob) -> Any:
        """A unit's file, mapped into memory as long as it is open: what stays mapped would count as this process's."""
        return safe_open(path_of(self.folder, job), framework="pt")

    def between(self, job: TensorJob, matrix: int, tasks: Sequence[str], low: int, high: int) -> tuple[Tensor, Tensor]:
        """The components from `low` to `high` of some tasks' matrices, side by side: left [K, m] and right [K, n]."""
        m, n = job.unit.matrix
        left, right = [torch.empty(0, m, dtype=self.encoder.dtype)], [torch.empty(0, n, dtype=self.encoder.dtype)]
        with self._opened(job) as file:
            held = frozenset(file.keys())
            for task in tasks if low < high else ():
                if f"{matrix}/{task}/left" in held:
                    left.append(file.get_slice(f"{matrix}/{task}/left")[low:high])
                    right.append(file.get_slice(f"{matrix}/{task}/right")[low:high])
            both = torch.cat(left), torch.cat(right)
        return both[0].to(self.encoder.device), both[1].to(self.encoder.device)


def _sides(one: Factors) -> dict[str, Tensor]:
    return {"left": (one.u * one.s).mT.contiguous().cpu(), "right": one.vt.contiguous().cpu()}


@dataclass
class Sums:
    """Σ_t SVD_k(τ_t) of every matrix, over `tasks`, for one k after another, ascending: each is the last one and what
    lies between. Held in memory: one task vector."""

    factored: Factored
    tasks: Sequence[str]
    _counts: dict[str, int] = field(init=False, default_factory=dict)
    _values: dict[str, list[Tensor]] = field(init=False, default_factory=dict)

    def advance(self, counts: Counts) -> None:
        """Goes on to the next number of components."""
        encoder = self.factored.encoder

        def work(job: TensorJob) -> None:
            if not job.factored:
                return
            m, n = job.unit.matrix
            before, after = self._counts.get(job.name, 0), counts(min(m, n))
            if job.name not in self._values:
                zeros = [
                    torch.zeros(m, n, dtype=encoder.dtype, device=encoder.device) for _ in range(job.unit.matrices)
                ]
                self._values[job.name] = zeros
            if after < min(m, n):  # a whole matrix is no sum of components
                for matrix, value in enumerate(self._values[job.name]):
                    left, right = self.factored.between(job, matrix, self.tasks, before, after)
                    if len(left):
                        value.addmm_(left.mT, right)
            self._counts[job.name] = after

        encoder.each(work, encoder.rows("weight"), factoring=True)

    def whole(self, job: TensorJob) -> bool:
        """Whether all components of a unit's matrices are kept."""
        return self._counts[job.name] >= min(job.unit.matrix)

    def of(self, job: TensorJob) -> Tensor:
        """The sum of a unit's truncated matrices, flat; not for matrices taken whole."""
        return job.unit.whole(self._values[job.name])


def put(sums: Sums, coefficient: float, *, lowest: bool = False, exact: bool = False,
        also: Callable[[TensorJob, Tensor], None] | None = None) -> None:  # fmt: skip
    """Puts origin + λ Σ_t SVD_k(τ_t) into the encoder; `lowest`: the other components, Σ_t τ_t - Σ_t SVD_k(τ_t) (E2).

    Units that are no matrices add their whole task vectors. `also` sees the values of every unit.
    """
    factored, encoder = sums.factored, sums.factored.encoder

    def work(job: TensorJob) -> None:
        held = factored.read(job, ("origin", "sum"))
        origin, total = held["origin"], held.get("sum")
        change = _change(sums, job, total, lowest=lowest)
        values = origin if change is None else torch.add(origin, change, alpha=coefficient)
        encoder.put(job, values, exact=exact)
        if also is not None:
            also(job, values)

    encoder.each(work, encoder.rows("weight"))


def _change(sums: Sums, job: TensorJob, total: Tensor | None, *, lowest: bool) -> Tensor | None:
    """What is added to a unit's origin, before it is scaled; None for nothing."""
    if not job.factored:
        return total
    if sums.whole(job) and not lowest:
        return total
    change = sums.of(job)
    if not lowest:
        return change
    return -change if total is None else total - change


def reach(points: Sequence[Counts]) -> Counts:
    """The components that all these points need at most; a matrix that is taken whole needs none."""

    def most(full: int) -> int:
        return max((count for one in points if (count := one(full)) < full), default=0)

    return most
