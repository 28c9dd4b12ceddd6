"""The plane of the first two principal components of a few points with very many coordinates, from inner products."""

from dataclasses import dataclass

import torch
from torch import Tensor

FLAT = 1e-10
"""A second variance below this share of the first is none: the points lie on a line."""


@dataclass(frozen=True)
class Plane:
    """Of M points x_m: axes e_i = Σ_m `combination`[i, m] (x_m - x̄), orthonormal; the points' `coordinates` [M, 2] in
    it, the share of the variance along each axis, and how far off each point is."""

    combination: Tensor
    coordinates: Tensor
    shares: tuple[float, float]
    off: Tensor


def plane_of(gram: Tensor) -> Plane | None:
    """The plane from the inner products [M, M] of the points about whatever origin; None where they lie on a line.

    An axis points to where the farthest point along it is. Float64 throughout.
    """
    count = len(gram)
    centre = torch.eye(count, dtype=torch.float64) - 1 / count
    inner = centre @ gram.double() @ centre
    variances, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    if count < 3 or not float(variances[-2]) > FLAT * float(variances[-1]):
        return None
    lengths, axes = variances[-2:].flip(0).sqrt(), vectors[:, -2:].flip(1)
    farthest = axes.abs().argmax(0)
    axes = axes * axes.gather(0, farthest[None]).sign()
    coordinates = axes * lengths
    squares = inner.diagonal() - coordinates.square().sum(1)
    shares = variances[-2:].flip(0) / variances.clamp(min=0).sum()
    return Plane((axes / lengths).T @ centre, coordinates, (float(shares[0]), float(shares[1])), _root(squares))


def _root(squares: Tensor) -> Tensor:
    return squares.clamp(min=0).sqrt()
