"""The polar factor: the partial isometry nearest to a matrix (TSV-M's whitening, Iso-CTS's flat spectrum)."""

from typing import NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.lapack import BLOCK, precise_gram
from taskmerge.numerics.powers import exponent_of, magnitude, times_power

DROPPED = 1e-6
"""Share of the largest singular value below which a direction is rounding: its place in the factor would be noise."""
SENSITIVE = 1e-3
"""Share of the largest singular value below which rounding of the input shows in the factor."""
DROPPED_NOTE = f"directions that tasks share (to {DROPPED:g}) are dropped"
SENSITIVE_NOTE = f"directions that tasks nearly share (to {SENSITIVE:g}) are kept, as published; rounding shows in them"
RULE = (
    f"directions that tasks share to {DROPPED:g} are dropped, all others kept, as published; "
    f"the run says where ties closer than {SENSITIVE:g} let rounding show"
)
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


def polar(matrix: Tensor) -> Polar:
    """A (AᵀA)^(-1/2) of a float32 or float64 matrix A [m, n], through a float64 Gram matrix of its smaller side.

    The minimiser of ‖X - A‖ over XᵀX = I (or XXᵀ = I). Where the Gram matrix cannot tell the weakest direction, an SVD
    in float64 answers; directions below DROPPED are left out then (a partial isometry). A zero matrix gives zeros;
    NaN or infinity is `BadNumber`.
    """
    largest = magnitude(matrix)
    if largest == 0:
        return Polar(torch.zeros_like(matrix), matrix.new_zeros(min(matrix.shape)), 0)
    exponent = exponent_of(largest)
    exponent = exponent if abs(exponent) > SAFE else 0
    scaled = times_power(matrix, -exponent) if exponent else matrix
    try:
        squares, vectors = torch.linalg.eigh(precise_gram(scaled))  # ascending
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not annotate it
        return _by_svd(matrix)
    if squares[0] < DEEPEST * squares[-1]:
        return _by_svd(matrix)
    root = (vectors * squares.rsqrt()) @ vectors.mT
    flat = bool(squares[0] >= FLAT**2 * squares[-1])
    s = times_power(squares.flip(0).sqrt(), exponent)
    return Polar(_whitened(scaled, root.to(matrix.dtype) if flat else root), s.to(matrix.dtype), len(s))


def notes(*factors: Polar) -> tuple[str, ...]:
    """What a user should know of a result that is made of these factors of the tasks' directions."""
    held = [factor for factor in factors if factor.kept]
    dropped = any(factor.kept < len(factor.s) for factor in held)
    sensitive = any(factor.s[factor.kept - 1] < SENSITIVE * factor.s[0] for factor in held)
    return (DROPPED_NOTE,) * dropped + (SENSITIVE_NOTE,) * sensitive


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


def _by_svd(matrix: Tensor) -> Polar:
    """The same by an SVD in float64."""
    p, s, qt = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = int((s >= DROPPED * s[0]).sum())
    return Polar((p[:, :kept] @ qt[:kept]).to(matrix.dtype), s.to(matrix.dtype), kept)
