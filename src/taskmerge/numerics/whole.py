"""All singular values of a matrix and its leading triplets, from one Gram matrix in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.lapack import LapackError, precise_gram
from taskmerge.numerics.leading import CERTAIN, Leading, accepted, by_svd, nothing, numerical_rank
from taskmerge.numerics.powers import exponent_of, magnitude, times_power
from taskmerge.numerics.spectral import Factors
from taskmerge.numerics.tridiagonal import values_and_top

ORDINARY = 32
"""Powers of two between which entries in float32 are factored as they are."""


class Whole(NamedTuple):
    """The singular values above the numerical rank, descending, float64, and the leading triplets."""

    values: Tensor
    factors: Factors


def whole(matrix: Tensor, k: int) -> Whole:
    """All values of a float32 or float64 matrix [m, n] on the CPU, and its k leading triplets (fewer where its rank is
    smaller).

    Values are the roots of a float64 Gram matrix's: relative errors of about 1e-16 (s_1 / s_i)². Those of a float64
    matrix below 1e-6 s_1 need an SVD. Raises `BadNumber` for NaN and infinity.
    """
    largest = magnitude(matrix)
    if largest == 0:
        return Whole(torch.zeros(0, dtype=torch.float64), factors_of(nothing(matrix), matrix.shape))
    exponent = exponent_of(largest)
    if matrix.dtype == torch.float32 and abs(exponent) < ORDINARY:
        exponent = 0  # float64 holds the squares, and no copy of the matrix has to be made
    scaled = times_power(matrix, -exponent) if exponent else matrix
    try:
        squares, near = values_and_top(precise_gram(scaled), min(k, *matrix.shape))
    except LapackError:
        squares, near = torch.zeros(1, dtype=torch.float64), None
    s = squares.clamp(min=0).sqrt()
    if near is None or (matrix.dtype == torch.float64 and s[-1] < CERTAIN * s[0]):
        s = torch.linalg.svdvals(scaled.double())
    s = s[s > numerical_rank(matrix) * s[0]]
    triplets = _triplets(scaled, near, s, k).scaled(exponent)
    return Whole(times_power(s, exponent), factors_of(triplets, matrix.shape))


def _triplets(matrix: Tensor, near: Tensor | None, s: Tensor, k: int) -> Leading:
    """The k leading triplets of a matrix of the values `s`, over the eigenvectors `near` if these are good enough."""
    if k == 0:
        return nothing(matrix)
    beyond = float(s[len(near)]) if near is not None and len(near) < len(s) else 0.0
    found = None if near is None else accepted(matrix, near, beyond, "float64 Gram")
    return (found or by_svd(matrix, k)).first(min(k, len(s)))


def factors_of(triplets: Leading, shape: torch.Size) -> Factors:
    """Leading triplets of a matrix [m, n] as u, s and vt."""
    unit = triplets.far / triplets.s[:, None]
    return (
        Factors(unit.mT, triplets.s, triplets.near)
        if shape[0] >= shape[1]
        else Factors(triplets.near.mT, triplets.s, unit)
    )
