"""The polar factor: the partial isometry nearest to a matrix (TSV-M's whitening, Iso-C's flat spectrum)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.lapack import BLOCK, precise_gram
from taskmerge.numerics.leading import magnitude, times_power

DROPPED = 1e-3
"""Directions with a singular value below this share of the largest are dropped: the factor is arbitrary there."""
DEEPEST = 1e-10
"""Least λ_min/λ_max of a float64 Gram matrix that answers for every direction (error at most 3e-7)."""
FLAT = 3e-2
"""Least σ_min/σ_max for which float32 matrices get their last product in float32."""
SAFE = 30
"""Matrices whose largest entry is within 2^±30 of 1 are squared as they are: no sum of squares leaves its range."""


class Polar(NamedTuple):
    """P Qᵀ of P S Qᵀ [m, n], all singular values s [min(m, n)] descending, and how many directions are in P Qᵀ."""

    factor: Tensor
    s: Tensor
    kept: int


def polar(matrix: Tensor, *, parity: bool = False) -> Tensor:
    """The polar factor P Qᵀ of P S Qᵀ [m, n] over the numerical rank; see `polar_decomposition`."""
    return polar_decomposition(matrix, parity=parity).factor


def polar_decomposition(matrix: Tensor, *, parity: bool = False) -> Polar:
    """A (AᵀA)^(-1/2) of a float32 or float64 matrix A [m, n], through a float64 Gram matrix of its smaller side.

    The minimiser of ‖X - A‖ over XᵀX = I. Directions below DROPPED are left out (a partial isometry); `parity` keeps
    all, as public codes do, by an SVD where the Gram matrix cannot tell them apart. A zero matrix gives zeros.
    """
    largest = magnitude(matrix)
    if largest == 0:
        return Polar(torch.zeros_like(matrix), matrix.new_zeros(min(matrix.shape)), 0)
    exponent = math.frexp(largest)[1]
    exponent = exponent if abs(exponent) > SAFE else 0
    scaled = times_power(matrix, -exponent) if exponent else matrix
    try:
        squares, vectors = torch.linalg.eigh(precise_gram(scaled))  # ascending
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not annotate it
        return _by_svd(matrix, parity)
    if parity and squares[0] < DEEPEST * squares[-1]:
        return _by_svd(matrix, parity)
    dropped = 0 if parity else int((squares < DROPPED**2 * squares[-1]).sum())
    kept, vectors = squares[dropped:], vectors[:, dropped:]
    root = (vectors * kept.rsqrt()) @ vectors.mT
    flat = bool(kept[0] >= FLAT**2 * kept[-1])
    s = times_power(squares.flip(0).clamp(min=0).sqrt(), exponent)
    return Polar(_whitened(scaled, root.to(matrix.dtype) if flat else root), s.to(matrix.dtype), len(kept))


def _whitened(matrix: Tensor, root: Tensor) -> Tensor:
    """A root (A [m, n], m >= n) or root A, in the root's precision; a matrix is widened a block at a time."""
    tall = matrix.shape[0] >= matrix.shape[1]
    if root.dtype == matrix.dtype:
        return matrix @ root if tall else root @ matrix
    factor = torch.empty_like(matrix)
    axis = 0 if tall else 1
    for out, block in zip(torch.split(factor, BLOCK, axis), torch.split(matrix, BLOCK, axis), strict=True):
        wide = block.to(root.dtype)
        out.copy_(wide @ root if tall else root @ wide)
    return factor


def _by_svd(matrix: Tensor, parity: bool) -> Polar:
    """The same by an SVD in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = len(s) if parity else int((s >= DROPPED * s[0]).sum())
    return Polar((u[:, :kept] @ vt[:kept]).to(matrix.dtype), s.to(matrix.dtype), kept)
