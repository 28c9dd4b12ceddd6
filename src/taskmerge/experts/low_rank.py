"""The common subspace of exactly low-rank task matrices: merging happens on small cores and is expanded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.experts.sources import LowRank, Source
from taskmerge.experts.tensors import Unit


@dataclass(frozen=True)
class Subspace:
    """Orthonormal bases left [m, R], right [R', n], and the tasks' cores [T, R, R']: τ_t = left · core_t · right.

    The cores are zeros, and the bases need not be orthonormal, where every τ_t is zero.
    """

    left: Tensor
    right: Tensor
    cores: Tensor

    @property
    def full(self) -> int:
        """min(m, n): the full rank of the matrices that the cores stand for."""
        return min(self.left.shape[0], self.right.shape[1])

    def expand(self, core: Tensor) -> Tensor:
        """left · core · right, [m, n]."""
        return self.left @ core.to(self.left.dtype) @ self.right


def subspaces(experts: Sequence[Source], unit: Unit, start: int, dtype: torch.dtype) -> list[Subspace] | None:
    """The common subspace of each piece of the portion of a unit that begins at `start` (itself, or its q, k and v), or
    None where one of them has none."""
    matrix = unit.expert_at(start)
    parts = [[expert.low_rank(part.name, matrix) for part in unit.parts] for expert in experts]
    cut = [cut_up(factors, unit.pieces, unit.axis) for factors in parts]
    complete = [factors for factors in cut if factors is not None]
    if len(complete) < len(cut):
        return None
    spaces = [compress(factors, unit.matrix, dtype) for factors in zip(*complete, strict=True)]
    small = [space for space in spaces if space is not None]
    return small if len(small) == len(spaces) else None


def compress(factors: Sequence[LowRank], shape: tuple[int, int], dtype: torch.dtype) -> Subspace | None:
    """The subspace that holds all task matrices [m, n], or None where it is as large as the matrices themselves.

    QR of the left factors side by side and of the right ones; spectral methods commute with the embedding, so no
    decomposition of an [m, n] matrix is needed. Computed in float64.
    """
    width = sum(left.shape[1] for left, _ in factors)
    if width >= min(shape) or any((left.shape[0], right.shape[1]) != shape for left, right in factors):
        return None
    if width == 0:  # nobody changes this matrix: its core is one zero
        m, n = shape
        return Subspace(*(torch.zeros(side, dtype=dtype) for side in ((m, 1), (1, n), (len(factors), 1, 1))))
    left = torch.linalg.qr(torch.cat([first.double() for first, _ in factors], dim=1)).Q
    right = torch.linalg.qr(torch.cat([other.double() for _, other in factors], dim=0).T).Q.T
    cores = torch.stack([(left.T @ first.double()) @ (second.double() @ right.T) for first, second in factors])
    return Subspace(left.to(dtype), right.to(dtype), cores.to(dtype))


def cut_up(parts: Sequence[LowRank | None], pieces: int, axis: int) -> list[LowRank] | None:
    """The factors of each of `pieces` along `axis` of a matrix whose rows are those of `parts`, one below the other.

    None where a part has no factors. So q, k and v in three tensors become one matrix, and one tensor three matrices.
    """
    complete = [part for part in parts if part is not None]
    if len(complete) < len(parts):
        return None
    left: Tensor = torch.block_diag(*(left for left, _ in complete))  # type: ignore[no-untyped-call]  # torch's has no types
    right = torch.cat([right for _, right in complete])
    if axis == 0:
        return [(piece, right) for piece in left.chunk(pieces)]
    return [(left, piece) for piece in right.chunk(pieces, dim=1)]


def fill(factors: LowRank, start: int, out: Tensor) -> None:
    """Elements of left · right from `start` on, row by row, into `out` (1-D); only rows that hold them are formed."""
    left, right = factors
    width = right.shape[1]
    first, last = start // width, -(-(start + len(out)) // width)
    rows = left[first:last].to(out.dtype) @ right.to(out.dtype)
    out.copy_(rows.reshape(-1)[start - first * width :][: len(out)])
