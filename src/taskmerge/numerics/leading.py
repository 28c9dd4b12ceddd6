"""The leading singular triplets of one matrix, through the Gram matrix of its smaller side.

SVD_k(A) = (A V_k) V_kᵀ = U_k (U_kᵀ A): one side's vectors are enough, and they are the eigenvectors of AᵀA or AAᵀ.
A Gram matrix squares the ratio of the singular values, so each precision answers only where it can: float32 first,
then float64, then a real SVD. What is accepted stands at the constants.
"""

import math
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.lapack import BLOCK, LapackError, gram, precise_gram, top_eigenpairs
from taskmerge.numerics.powers import exponent_of, magnitude, times_power

Means = Literal["zero", "given", "float32 Gram", "float64 Gram", "SVD", "randomized"]

SHALLOWEST = 3e-2
"""Least s_k/s_1 for a float32 Gram matrix: its relative error is about eps (s_1/s_k)², and eps is 6e-8."""
LOOSEST = 2e-6
"""Largest `turned` for a float32 Gram matrix; the truncated product's error is up to five times that, seldom nine."""
SPARE = 8
"""Eigenvectors on either side of the cut that a second look at a float32 Gram matrix sorts again (`_sorted_again`)."""
NEARBY = 1e-5
"""Largest residual for that second look: above it rounding has turned vectors in all directions, not just near ones."""
RESIDUAL = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest ‖Aᵀu - s v‖ / s of an accepted triplet, by the matrix's precision."""
NEGLIGIBLE = 1e-8
"""In a truncation of a float32 matrix, residuals below this share of s_1 are as small as its own rounding."""
CERTAIN = 1e-6
"""Share of s_1 below which a float64 Gram matrix says too little about a float64 matrix's singular value."""

SAFE = {torch.float32: (1e-20, 1e30), torch.float64: (1e-200, 1e200)}
"""Values of ‖A‖² for which the Gram matrix neither overflows nor underflows in that precision."""


class Leading(NamedTuple):
    """The k leading triplets of a matrix [p, q] with sides r = min(p, q) <= R.

    `near` [k, r] are orthonormal rows (v for a tall matrix, u for a wide one), `far` [k, R] the rows A v or Aᵀu, of
    lengths `s` [k], descending. `residual` [k] is ‖Aᵀu - s v‖ / s. `beyond` is s_{k+1}, 0 where there is none.
    `complete`: no further component above the numerical rank. `tail` is ‖A - SVD_k(A)‖ (float32 Gram matrices only).
    `edge` (j, s) says that rounding can mix those from j on with singular values up to s only (`_sorted_again`).
    """

    near: Tensor
    far: Tensor
    s: Tensor
    residual: Tensor
    beyond: float
    complete: bool
    means: Means
    tail: float = 0.0
    edge: tuple[int, float] | None = None

    def first(self, k: int) -> "Leading":
        """The first k of them."""
        if k >= len(self.s):
            return self
        near, far, s, residual = self.near[:k], self.far[:k], self.s[:k], self.residual[:k]
        tail = math.hypot(self.tail, *self.s[k:].tolist())
        return Leading(near, far, s, residual, float(self.s[k]), False, self.means, tail, self.edge)

    @property
    def steep(self) -> bool:
        """Whether a float32 Gram matrix could not have told these triplets: s_k/s_1 too small, or rank below k."""
        if len(self.s) == 0:
            return False
        deficient = self.complete and len(self.s) < self.near.shape[1]
        return deficient or float(self.s[-1]) < SHALLOWEST * float(self.s[0])

    def answers(self, k: int) -> bool:
        """Whether the first k are known, and as precisely as a cut behind the k-th asks for."""
        if k > len(self.s):
            return self.complete
        return self.means != "float32 Gram" or turned(self.first(k)) <= LOOSEST

    def scaled(self, exponent: int) -> "Leading":
        """The triplets of 2^exponent times the matrix."""
        return self._replace(
            far=times_power(self.far, exponent),
            s=times_power(self.s, exponent),
            beyond=math.ldexp(self.beyond, exponent),
            tail=math.ldexp(self.tail, exponent),
            edge=self.edge and (self.edge[0], math.ldexp(self.edge[1], exponent)),
        )


def leading(matrix: Tensor, k: int, *, precise: bool = False) -> Leading:
    """The k leading triplets of a float32 or float64 matrix [p, q] on the CPU; fewer where its rank is smaller.

    Components below the rounding of the matrix's own precision do not count. `precise` goes straight to a float64
    Gram matrix. Never gives NaN; a matrix that holds NaN or infinity is `BadNumber`.
    """
    k = min(k, *matrix.shape)
    if k == 0 or matrix.numel() == 0:
        return nothing(matrix)
    single = matrix.dtype == torch.float32 and not precise
    symmetric = gram(matrix) if single else precise_gram(matrix)
    low, high = SAFE[symmetric.dtype]
    energy = float(symmetric.diagonal().sum())
    if not low <= energy <= high:
        return rescaled(matrix, lambda fitting: leading(fitting, k, precise=precise))
    if single:
        triplets = _by_float32(matrix, symmetric, k, energy)
        if triplets is not None:
            return triplets
        symmetric = precise_gram(matrix)
    return _by_gram(matrix, symmetric, k) or by_svd(matrix, k)


def leading_batched(stack: Tensor, k: int) -> list[Leading]:
    """The same for all matrices of a stack [T, p, q] in one eigensolver call, float64 Gram matrices, on any device."""
    k = min(k, *stack.shape[-2:])
    lengths = torch.linalg.vector_norm(stack, dim=(-2, -1), dtype=torch.float64).tolist()
    low, high = SAFE[torch.float64]
    inside = [task for task, length in enumerate(lengths) if k > 0 and low <= length**2 <= high]
    triplets = dict(zip(inside, _batched(stack[inside], k), strict=True)) if inside else {}
    for task, matrix in enumerate(stack):
        if task not in triplets:
            empty = k == 0 or matrix.numel() == 0
            triplets[task] = (
                nothing(matrix) if empty else rescaled(matrix, lambda fitting: _batched(fitting[None], k)[0])
            )
    return [triplets[task] for task in range(len(stack))]


def _batched(stack: Tensor, k: int) -> list[Leading]:
    """`leading_batched` for matrices that are neither zero nor beyond the range of their Gram matrix."""
    tall = stack.double()
    tall = tall.mT if stack.shape[-2] >= stack.shape[-1] else tall  # [T, r, R]
    try:
        squares, vectors = torch.linalg.eigh(tall @ tall.mT)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not annotate it
        return [by_svd(matrix, k) for matrix in stack]
    squares, vectors = squares.flip(-1).clamp(min=0), vectors.flip(-1).mT
    beyond = squares[:, k].sqrt().tolist() if k < squares.shape[-1] else [0.0] * len(stack)
    return [
        accepted(matrix, near[:k], rest, "float64 Gram") or by_svd(matrix, k)
        for matrix, near, rest in zip(stack, vectors, beyond, strict=True)
    ]


def nothing(matrix: Tensor) -> Leading:
    """The triplets of a zero matrix: none."""
    near, far = matrix.new_empty(0, min(matrix.shape)), matrix.new_empty(0, max(matrix.shape))
    return Leading(near, far, matrix.new_empty(0), matrix.new_empty(0), 0.0, True, "zero")


def singular_values(matrix: Tensor) -> Tensor:
    """All min(p, q) singular values of a float32 or float64 matrix, descending, on any device; no vectors."""
    largest = magnitude(matrix)
    if largest == 0:
        return matrix.new_zeros(min(matrix.shape))
    exponent = exponent_of(largest)
    scaled = times_power(matrix, -exponent).double()
    s = torch.linalg.eigvalsh(gram(scaled)).flip(0).clamp(min=0).sqrt()
    if matrix.dtype == torch.float64 and s[-1] < CERTAIN * s[0]:
        s = torch.linalg.svdvals(scaled)
    return times_power(s, exponent).to(matrix.dtype)


def rescaled(matrix: Tensor, factor: Callable[[Tensor], Leading]) -> Leading:
    """`factor` of the matrix brought near 1 by a power of two, which changes no digit."""
    largest = magnitude(matrix)
    if largest == 0:
        return nothing(matrix)
    exponent = exponent_of(largest)
    return factor(times_power(matrix, -exponent)).scaled(exponent)


def turned(triplets: Leading) -> float:
    """How far rounding has turned the kept vectors towards those behind the cut: an error of SVD_k(A), relative.

    A residual r_i = ‖Aᵀu_i - s_i v_i‖ that rounding spreads evenly over all r directions turns v_i towards a v_j by
    s_i (r_i / √r) / (s_i² - s_j²), most of all where j is the first behind the cut, and the product changes by s_i
    times that: measured errors are 0.2 to 5 times the figure, for any spectrum. Relative to the smaller of what is
    kept and what is cut off: centred matrices sum to zero, so the sum of what is kept is as small as that of the rest.
    """
    s, residual = triplets.s.double(), triplets.residual.double()
    behind = torch.full_like(s, triplets.beyond)
    if triplets.edge is not None:
        behind[triplets.edge[0] :] = triplets.edge[1]
    gaps = s**2 - behind**2
    if triplets.complete or not bool((gaps > 0).all()):
        return 0.0 if triplets.complete else math.inf
    change = float((s**3 * residual / gaps).norm()) / math.sqrt(triplets.near.shape[1])
    return change / max(min(float(s.norm()), triplets.tail), sys.float_info.min)


def _by_float32(matrix: Tensor, symmetric: Tensor, k: int, energy: float) -> Leading | None:
    """The triplets from a float32 Gram matrix of trace `energy`, or None where that is not precise enough."""
    try:
        squares, near = top_eigenpairs(symmetric, min(k + 1 + SPARE, len(symmetric)))
    except LapackError:
        return None
    if squares[k - 1] < SHALLOWEST**2 * squares[0]:
        return None
    bounds = squares.clamp(min=0).sqrt().tolist()
    beyond = bounds[k] if k < len(bounds) else 0.0
    looked = _Looked(near[:k], *_other_side(matrix, near[:k]))
    triplets = _leading_of(looked, beyond, k == len(symmetric), energy)
    if not _acceptable(triplets) and len(near) == k + 1 + SPARE and float(triplets.residual.max()) <= NEARBY:
        start = max(0, k - SPARE)
        again = _sorted_again(matrix, near[start:-1])
        if again is not None:
            edge = _Looked(again[: k - start], *_other_side(matrix, again[: k - start]))
            both = _Looked(*(torch.cat([first[:start], second]) for first, second in zip(looked, edge, strict=True)))
            triplets = _leading_of(both, beyond, False, energy)._replace(edge=(start, bounds[-1]))
    return triplets if _acceptable(triplets) else None


class _Looked(NamedTuple):
    """Vectors [k, r] and what the matrix makes of them: see `_other_side`."""

    near: Tensor
    far: Tensor
    s: Tensor
    residual: Tensor


def _acceptable(triplets: Leading) -> bool:
    return float(triplets.residual.max()) <= RESIDUAL[triplets.near.dtype] and turned(triplets) <= LOOSEST


def _leading_of(looked: _Looked, beyond: float, complete: bool, energy: float) -> Leading:
    """The triplets over float32 vectors, their values refined to ‖A v‖."""
    near, far, s, residual = looked
    s, order = s.sort(descending=True, stable=True)
    tail = math.sqrt(max(energy - float(s.double().square().sum()), 0.0))
    return Leading(near[order], far[order], s, residual[order] / s, beyond, complete, "float32 Gram", tail)


def _sorted_again(matrix: Tensor, near: Tensor) -> Tensor | None:
    """The singular vectors of A within the span of `near` [k, r], to float64: rows, descending (Rayleigh-Ritz).

    Where s_k and s_{k+1} are close, a float32 Gram matrix mixes the vectors before a cut with those behind it. The span
    of those around the cut is known better: what it lacks is farther away. None if they are dependent.
    """
    basis = near.double()
    far = _far(matrix, basis)
    try:
        root = torch.linalg.cholesky(basis @ basis.mT)  # they are orthonormal to float32 only
        half = torch.linalg.solve_triangular(root, far, upper=False)
        _, turn = torch.linalg.eigh(half @ half.mT)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not annotate it
        return None
    straight = torch.linalg.solve_triangular(root, basis, upper=False)
    sorted_: Tensor = turn.flip(-1).mT @ straight
    return sorted_.to(near.dtype)


def _by_gram(matrix: Tensor, symmetric: Tensor, k: int) -> Leading | None:
    """The triplets from a float64 Gram matrix (its lower triangle, which may be overwritten), or None where that is not
    precise enough."""
    try:
        squares, near = top_eigenpairs(symmetric, min(k + 1, len(symmetric)))
    except LapackError:
        return None
    beyond = math.sqrt(max(float(squares[k]), 0.0)) if k < len(squares) else 0.0
    return accepted(matrix, near[:k], beyond, "float64 Gram")


def accepted(matrix: Tensor, near: Tensor, beyond: float, means: Means) -> Leading | None:
    """The triplets over float64 vectors `near` [k, r], rounded to the matrix's precision, if their residuals are small.

    Values are refined to ‖A v‖, and those below the numerical rank dropped.
    """
    far, s, residual = _other_side(matrix, near)
    s, order = s.sort(descending=True, stable=True)
    kept = int((s > numerical_rank(matrix) * s[0]).sum())
    order, s = order[:kept], s[:kept]
    rounding = matrix.dtype == torch.float32 and len(near) < min(matrix.shape)
    bound = torch.maximum(RESIDUAL[matrix.dtype] * s, (NEGLIGIBLE if rounding else 0) * s[0])
    if not bool((residual[order] <= bound).all()):
        return None
    complete = kept < len(near) or kept == min(matrix.shape)
    near, far, s, residual = (part.to(matrix.dtype) for part in (near[order], far[order], s, residual[order] / s))
    return Leading(near, far, s, residual, 0.0 if complete else beyond, complete, means)


def _other_side(matrix: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Far vectors A v (or Aᵀu), their lengths s, and ‖Aᵀ(A v / s) - s v‖; where s is 0, so is the residual.

    In the precision of `near`; a float32 matrix is widened for float64 vectors a block at a time.
    """
    far = _far(matrix, near)
    s = far.norm(dim=-1)
    unit = far / torch.where(s > 0, s, 1)[..., None]
    back = torch.zeros_like(near)
    blocks = _blocks(matrix, near.dtype)
    for block, part in zip(blocks, torch.split(unit, [block.shape[-1] for block in blocks], dim=-1), strict=True):
        back += part @ block.to(near.dtype).mT
    return far, s, (back - s[..., None] * near).norm(dim=-1)


def _far(matrix: Tensor, near: Tensor) -> Tensor:
    """The rows A v (or Aᵀu) of vectors [k, r], in their precision."""
    return torch.cat([near @ block.to(near.dtype) for block in _blocks(matrix, near.dtype)], dim=-1)


def _blocks(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The matrix [r, R], its smaller side first, as it is or in blocks of columns that are small enough to widen."""
    tall = matrix.mT if matrix.shape[-2] >= matrix.shape[-1] else matrix
    return (tall,) if tall.dtype == dtype else torch.split(tall, BLOCK, dim=-1)


def numerical_rank(matrix: Tensor) -> float:
    """The share of s_1 below which a singular value is rounding.

    Entries rounded to eps, at random, add up to singular values of at most about eps s_1: a few times that in float32.
    In float64 the factorisation's own rounding, max(p, q) eps, is larger.
    """
    eps = torch.finfo(matrix.dtype).eps
    return 4 * eps if matrix.dtype == torch.float32 else eps * max(matrix.shape[-2:])


def by_svd(matrix: Tensor, k: int) -> Leading:
    """The triplets by an SVD in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = min(k, int((s > numerical_rank(matrix) * s[0]).sum()))
    tall = matrix.shape[0] >= matrix.shape[1]
    near, far = (vt[:kept], u[:, :kept].mT) if tall else (u[:, :kept].mT, vt[:kept])
    far = far * s[:kept, None]
    complete = kept < k or kept == len(s)
    beyond = 0.0 if complete else float(s[kept])
    near, far, s = (part.to(matrix.dtype).contiguous() for part in (near, far, s[:kept]))
    return Leading(near, far, s, torch.zeros_like(s), beyond, complete, "SVD")
