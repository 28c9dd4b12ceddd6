"""Intruder dimensions: leading directions of an expert's weights that are none of the base's. Pure.

A left singular vector of the expert is an intruder if its cosine with each of the base's is below 0.6, among the ten
leading ones (Shuttleworth et al. 2024, arXiv:2410.21228, algorithm 1).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from taskmerge.numerics.lapack import precise_gram
from taskmerge.numerics.leading import CERTAIN, leading
from taskmerge.numerics.powers import exponent_of, magnitude, times_power

DIRECTIONS = 10
FAR = 0.6


class Known(NamedTuple):
    """The left singular vectors of a base's matrix [m, n]: `near` [r, min(m, n)] are those of the smaller side, with
    their values `s` [r]; `matrix` leads from there to the left side where that is not the smaller one (else None)."""

    near: Tensor
    s: Tensor
    matrix: Tensor | None


def known(matrix: Tensor) -> Known:
    """The directions of a base. Those that rounding decides are left out."""
    exponent = exponent_of(magnitude(matrix))
    scaled = times_power(matrix, -exponent)
    tall = matrix.shape[0] >= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(precise_gram(scaled))  # of the lower triangle
    s = squares.clamp(min=0).sqrt()
    kept = s > CERTAIN * s[-1]
    return Known(vectors[:, kept].mT.to(matrix.dtype), s[kept].to(matrix.dtype), scaled if tall else None)


def nearest(base: Known, matrix: Tensor) -> Tensor:
    """For each of the ten leading left singular vectors of an expert's matrix (fewer where its rank is smaller) the
    largest absolute cosine with any of the base's; [k]."""
    triplets = leading(matrix, DIRECTIONS)
    if base.matrix is None:
        cosines = triplets.near @ base.near.mT
    else:  # u_iᵀ u_j = (u_iᵀ A) v_j / s_j
        cosines = (triplets.far / triplets.s[:, None] @ base.matrix) @ base.near.mT / base.s
    return cosines.abs().amax(1) if len(base.s) else cosines.new_zeros(len(cosines))
