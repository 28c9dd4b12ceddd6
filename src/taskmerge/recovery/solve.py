"""Coefficients from inner products: least squares in five forms, how sure each number is, and what cannot be told.

With differences x_t from the origin (the base, or the experts' mean) and d, the merged checkpoint's, all forms minimise
‖d - c o - Σ_t a_t x_t‖² over a set of (c, a), which the inner products of origin o, x_t and d decide (the normal
equations). From a base that is (1 + c - Σ a_t) θ₀ + Σ a_t θ_t; about the mean, whose differences sum to zero, it is
Σ ((1 + c)/T + a_t) θ_t with Σ a_t = 0.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from taskmerge.numerics.likeness import groups
from taskmerge.recovery.moments import Moments

Form = Literal["least squares", "scaled", "non-negative", "sum to one", "soup"]
FORMS: tuple[Form, ...] = get_args(Form)
ALIKE = 1e-12
"""Share of the largest eigenvalue of the experts' correlations up to which a direction is none."""
SHARED = 1e-3
"""Part that an expert has in such a direction, from which on its coefficient is unknown."""
ARITHMETIC, SUMS = 2.0**-24, 2.0**-46
"""What differences taken in float32 may be off, relative to themselves, and sums of 2^16 squares in float64, usually:
2^7 times a rounding of 2^-53."""
TINY = 1e-300
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """One form's answer over some tensors.

    `coefficients` are the experts', `base` the base's beside them (None without one), `errors` standard errors of the
    experts' as if what is left were noise (none of bounded forms), `unknown` sets of experts whose coefficients cannot
    be told apart (of one: not at all). `residual` is the length of what is left, relative to that of the change from
    the base (about the experts' mean: to the usual expert's distance from it); `beyond` the part of it that one
    rounding does not explain; `ratio` what is left relative to what rounding leaves, None where as many coefficients as
    entries leave nothing. `drowned`: rounding is as large as half of the change.
    """

    form: Form
    coefficients: tuple[float, ...]
    base: float | None
    errors: tuple[float, ...]
    unknown: tuple[tuple[int, ...], ...]
    residual: float
    beyond: float
    ratio: float | None
    drowned: bool


def fit(of: Moments, form: Form, *, based: bool, rounding: float | None = None) -> Fit:
    """The coefficients of one form; `rounding` is the square of what rounding does, where it is not `of.rounding`.

    `least squares`: any coefficients from a base, without one such as sum to one. `scaled`: all may sum to anything,
    the base's with them. `non-negative`: no expert's is negative. `sum to one`: nothing of the base. `soup`: both of
    these.
    """
    problem = _Problem.of(of, based)
    if form in ("non-negative", "soup"):
        found = _bounded(problem, summed=form == "soup" or not based, based=based)
    else:
        found = _least_squares(problem, _space(form, of.experts, based))
    left = max(problem.left(found.z), 0.0)
    noise = (of.rounding if rounding is None else rounding) / problem.scale
    noise += (ARITHMETIC**2 / 12 + SUMS) * problem.terms(found.z)
    free = of.numel - found.rank
    spread = max(left, noise) / max(free, 1)
    return Fit(
        form, tuple(found.weights.tolist()), float(1 + found.z[0] - found.weights.sum()) if based else None,
        tuple(np.sqrt(spread * found.variances).tolist()), found.unknown, math.sqrt(left),
        math.sqrt(max(left - noise, 0.0)), _ratio(left, noise * free / of.numel) if free > 0 else None, noise > 0.25,
    )  # fmt: skip


def _ratio(left: float, noise: float) -> float:
    """Lengths beside each other; what rounding leaves may be below what a float can square."""
    return math.sqrt(left / max(noise, TINY))


@dataclass(frozen=True, slots=True)
class _Problem:
    """Inner products of origin and differences [1 + T, 1 + T], theirs with d, and ‖d‖², all relative to `scale`: the
    square of the change, or about the mean, where an average leaves none, of the usual expert's distance from it."""

    products: Floats
    merged: Floats
    change: float
    scale: float

    @classmethod
    def of(cls, moments: Moments, based: bool) -> "_Problem":
        usual = float(moments.between.trace()) / moments.experts
        scale = (moments.change if based else max(usual, moments.change)) or 1.0
        every = moments.gram.numpy() / scale
        return cls(every[:-1, :-1], every[:-1, -1], moments.change / scale, scale)

    def left(self, z: Floats) -> float:
        """‖d - Σ z x‖²."""
        return float(self.change - 2 * self.merged @ z + z @ self.products @ z)

    def terms(self, z: Floats) -> float:
        """The squares of what is summed there."""
        return float(self.change + z**2 @ self.products.diagonal())


@dataclass(frozen=True, slots=True)
class _Space:
    """Where coefficients may lie: `start` + `ways` u, of origin and differences; the experts' weights follow as
    `weights` + `moves` u."""

    start: Floats
    ways: Floats
    weights: Floats
    moves: Floats


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer: coefficients of origin and differences, the experts' weights, these weights' variances for a noise of
    one an entry, what cannot be told, and how many numbers were free."""

    z: Floats
    weights: Floats
    variances: Floats
    unknown: tuple[tuple[int, ...], ...]
    rank: int


def _space(form: Form, experts: int, based: bool) -> _Space:
    """The coefficients that a form without bounds allows."""
    even, every = np.full(experts, 1 / experts), np.eye(1 + experts)
    apart = _contrasts(experts)  # columns that sum to zero
    if based and form != "sum to one":
        start, ways = np.zeros(1 + experts), every if form == "scaled" else every[:, 1:]
        return _Space(start, ways, start[1:], ways[1:])
    ways = np.concatenate([np.zeros((1, apart.shape[1])), apart])
    start = np.concatenate([[0.0], even]) if based else np.zeros(1 + experts)
    if form != "scaled":
        return _Space(start, ways, even, apart)
    return _Space(start, np.column_stack([every[:, 0], ways]), even, np.column_stack([even, apart]))


def _contrasts(count: int) -> Floats:
    """Orthonormal columns [count, count - 1] that are orthogonal to the vector of ones."""
    return np.linalg.qr(np.column_stack([np.ones(count), np.eye(count)[:, 1:]]))[0][:, 1:]


def _least_squares(problem: _Problem, space: _Space) -> _Found:
    """The shortest of the best: by the eigenvectors of the matrix of correlations, without those of no length."""
    matrix = space.ways.T @ problem.products @ space.ways
    target = space.ways.T @ (problem.merged - problem.products @ space.start)
    lengths = np.sqrt(np.maximum(matrix.diagonal(), 0))
    inverse = np.divide(1, lengths, out=np.ones_like(lengths), where=lengths > 0)
    values, vectors = np.linalg.eigh(matrix * inverse[:, None] * inverse)
    kept = values > ALIKE * max(values.max(initial=0), 0)
    back = inverse[:, None] * vectors  # from eigenvectors to coefficients
    u = back[:, kept] @ ((back[:, kept].T @ target) / values[kept])
    spread = (space.moves @ back[:, kept]) ** 2 @ (1 / values[kept])
    unknown = _unknown(space.moves @ back[:, ~kept])
    return _Found(space.start + space.ways @ u, space.weights + space.moves @ u, spread, unknown, int(kept.sum()))


def _unknown(directions: Floats) -> tuple[tuple[int, ...], ...]:
    """The sets of experts that some directions [T, n], in which nothing can be told, have a part in together."""
    lengths = np.linalg.norm(directions, axis=0)
    basis = np.linalg.svd(directions[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)[0]
    shared = np.abs(basis @ basis.T)
    linked = torch.from_numpy(shared > SHARED)
    return tuple(group for group in groups(linked) if shared[group[0], group[0]] > SHARED)


def _bounded(problem: _Problem, *, summed: bool, based: bool) -> _Found:
    """No expert's coefficient below zero: by Lawson's and Hanson's algorithm on a root of the matrix. `summed`: they
    sum to one, so that the answer is the point of the experts' convex hull that is nearest to d."""
    inner, merged = problem.products[1:, 1:], problem.merged[1:]
    if summed:
        points = inner - merged[:, None] - merged + problem.change
        root = _root(points)
        weights = nnls(np.vstack([root, np.ones(len(points))]), np.append(np.zeros(len(root)), 1.0))[0]
        weights = weights / weights.sum()
    else:
        root = _root(inner)
        weights = nnls(root, np.linalg.pinv(root.T) @ merged)[0]
    z = np.concatenate([[0.0], weights])
    return _Found(z, weights, np.zeros(0), (), int((weights > 0).sum()))


def _root(matrix: Floats) -> Floats:
    """R with RᵀR the matrix, without directions of no length."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > ALIKE * max(values.max(initial=0), 0)
    root: Floats = (vectors[:, kept] * np.sqrt(values[kept])).T
    return root
