"""What lies between tasks in one matrix, each beside its chance level. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.numerics.spectral import Factors
from taskmerge.spectra import chance


@dataclass(frozen=True, slots=True)
class Beside:
    """A measure and what chance gives: tensors of one shape, NaN where there is nothing to measure."""

    value: Tensor
    chance: Tensor


@dataclass(frozen=True, slots=True)
class Overlaps:
    """How the leading k components of T tasks lie to each other in a matrix [m, n]; tables [T, T].

    `left` and `right` ‖U_sᵀU_t‖_F² / k and the same of V (k the smaller count where a matrix has fewer components);
    `interference` ‖P_{U_t} SVD_k(τ_s) P_{V_t}‖_F² / ‖SVD_k(τ_s)‖_F², s down, t across; `singular` (0-D) is the singular
    task interference ‖(UᵀU - I) diag(s) (VᵀV - I)‖₁ of all side by side (TSV, arXiv:2412.00081), by `total`, the sum of
    all values Σ s.
    """

    left: Beside
    right: Beside
    interference: Beside
    singular: Beside
    total: Tensor


def overlaps(factors: Sequence[Factors], shape: tuple[int, int]) -> Overlaps:
    """The overlaps of T tasks' leading triplets, whose vectors have coordinates in any orthonormal bases; the matrices
    are of `shape` [m, n]."""
    m, n = shape
    sizes = [len(one.s) for one in factors]
    u = torch.cat([one.u.double() for one in factors], dim=1)
    v = torch.cat([one.vt.double() for one in factors]).mT
    s = torch.cat([one.s.double() for one in factors])
    left, right = u.mT @ u, v.mT @ v
    return Overlaps(
        _shared(left, sizes, m), _shared(right, sizes, n), _interference(left, right, s, sizes, shape),
        _singular(left, right, s, sizes, shape),
        s.sum(),
    )  # fmt: skip


def _table(sizes: Sequence[int]) -> Tensor:
    return torch.full((len(sizes), len(sizes)), torch.nan, dtype=torch.float64)


def _blocks(table: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """A table of components as tasks: rows of blocks."""
    return [torch.split(row, list(sizes), dim=1) for row in torch.split(table, list(sizes), dim=0)]


def _shared(products: Tensor, sizes: Sequence[int], side: int) -> Beside:
    """Squared cosines between subspaces over the smaller of their sizes."""
    value, level = _table(sizes), _table(sizes)
    for first, row in enumerate(_blocks(products.square(), sizes)):
        for second, block in enumerate(row):
            if block.numel():
                value[first, second] = block.sum() / min(block.shape)
                level[first, second] = chance.overlap(sizes[first], sizes[second], side)
    return Beside(value, level)


def _interference(left: Tensor, right: Tensor, s: Tensor, sizes: Sequence[int], shape: tuple[int, int]) -> Beside:
    """The share of each task's leading components that lies in another's left and right spaces."""
    value, level = _table(sizes), _table(sizes)
    lefts, rights, values = _blocks(left, sizes), _blocks(right, sizes), torch.split(s, list(sizes))
    for source, own in enumerate(values):
        energy = own.square().sum()
        for target, size in enumerate(sizes):
            if len(own) and size:
                seen = (lefts[target][source] * own) @ rights[source][target]  # U_tᵀ U_s diag(s) V_sᵀ V_t
                value[source, target] = seen.square().sum() / energy
                level[source, target] = chance.captured(size, size, shape)
    return Beside(value, level)


def _singular(left: Tensor, right: Tensor, s: Tensor, sizes: Sequence[int], shape: tuple[int, int]) -> Beside:
    """Singular task interference by Σ s; the identity stands for each task's own products, which are exact."""
    ones = (torch.ones(size, size, dtype=torch.bool) for size in sizes)
    own = torch.block_diag(*ones)  # type: ignore[no-untyped-call]  # torch does not annotate it
    apart = (left.masked_fill(own, 0) * s) @ right.masked_fill(own, 0)
    total = s.sum()
    nothing = torch.tensor(torch.nan, dtype=torch.float64)
    if total == 0:
        return Beside(nothing, nothing)
    level = chance.singular_interference(torch.split(s, list(sizes)), shape)
    return Beside(apart.abs().sum() / total, torch.tensor(level, dtype=torch.float64) / total)


@dataclass(frozen=True, slots=True)
class Alignment:
    """How much of each task's matrix lies in the left space of the merged one's (Iso, arXiv:2502.04959, eq. 3).

    `share` [T] is ‖P τ_t‖_F² / ‖τ_t‖_F², whose root is the paper's ratio; `rank` the number of left singular vectors of
    the merged task vector that P projects on: the least that leaves 5% of its norm.
    """

    rank: int
    share: Beside


KEPT = 1 - 0.05**2
"""The share of Σ s² of a merged task vector that its subspace holds: the rest is 5% of its norm."""


def alignment(merged: Factors, stack: Tensor, shape: tuple[int, int]) -> Alignment:
    """The alignment of T task matrices [T, p, q] with the leading triplets of the merged one."""
    norms = torch.linalg.vector_norm(stack, dim=(1, 2), dtype=torch.float64)
    rank = len(merged.s)
    inside = torch.linalg.vector_norm(merged.u.mT.to(stack.dtype) @ stack, dim=(1, 2), dtype=torch.float64)
    share = torch.where(norms > 0, (inside / norms).square(), torch.nan)
    return Alignment(rank, Beside(share, torch.full_like(share, rank / shape[0] if rank else torch.nan)))
