"""All singular values of a matrix and its leading triplets, from one Gram matrix in float64."""

from typing import NamedTuple

from torch import Tensor

from taskmerge.numerics.leading import leading, nothing, numerical_rank, singular_values
from taskmerge.numerics.powers import magnitude
from taskmerge.numerics.spectral import Factors


class Whole(NamedTuple):
    """The singular values above the numerical rank, descending, float64, and the leading triplets."""

    values: Tensor
    factors: Factors


def whole(matrix: Tensor, k: int) -> Whole:
    """All values of a float32 or float64 matrix [m, n] on the CPU, and its k leading triplets (fewer where its rank is
    smaller). NaN and infinity are `BadNumber`."""
    if magnitude(matrix) == 0:
        triplets = nothing(matrix)
        return Whole(triplets.s.double(), _factors(matrix, triplets.near, triplets.far, triplets.s))
    s = singular_values(matrix)
    s = s[s > numerical_rank(matrix) * s[0]]
    triplets = leading(matrix, min(k, len(s)), precise=True)
    return Whole(s.double(), _factors(matrix, triplets.near, triplets.far, triplets.s))


def _factors(matrix: Tensor, near: Tensor, far: Tensor, s: Tensor) -> Factors:
    unit = far / s[:, None]
    return Factors(unit.mT, s, near) if matrix.shape[0] >= matrix.shape[1] else Factors(near.mT, s, unit)
