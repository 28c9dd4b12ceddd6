"""Stacks of task matrices with known spectra, and plain float64 references for the spectral methods."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics.spectral import TaskMatrices

PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
SHAPES = [(1, 7), (7, 1), (1, 1), (12, 12), (20, 9), (9, 20), (33, 16), (16, 33)]
STORED = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EXACT = [torch.float64, torch.float32]
DROPPED = 1e-6
"""Share of the largest singular value below which TSV-M and Iso-CTS drop a direction."""
COEFFICIENTS = st.sampled_from([-1.5, -0.3, 0.0, 0.4, 2.0])


@dataclass(frozen=True)
class Case:
    """Task matrices as a kernel gets them: stored in one dtype, computed in float32 or float64."""

    stack: Tensor

    @property
    def tasks(self) -> int:
        return len(self.stack)

    @property
    def full(self) -> int:
        return min(self.stack.shape[1:])

    @property
    def eps(self) -> float:
        return torch.finfo(self.stack.dtype).eps

    @property
    def matrices(self) -> TaskMatrices:
        return TaskMatrices(self.stack)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The same matrices in float64, for the reference."""
        return [matrix.double().numpy() for matrix in self.stack]

    def tolerance(self, gap: float) -> float:
        """The relative error that a subspace with this spectral gap allows; the Gram route gives 1e-9 in float64."""
        return max(20 * self.eps / gap, 1e-9)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random [rows, columns] float64 matrix with orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def with_spectrum(shape: tuple[int, int], values: Tensor, generator: torch.Generator) -> Tensor:
    """A random float64 matrix with these singular values."""
    left, right = (orthonormal(side, len(values), generator) for side in shape)
    return (left * values) @ right.mT


@st.composite
def cases(draw, dtypes=STORED, shapes=SHAPES, tasks=(1, 5), decays=(0.5, 0.9)) -> Case:
    """Stacks whose singular values fall geometrically; some matrices of low rank, some zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.sampled_from(shapes))
    full = min(shape)
    decay = draw(st.floats(*decays))
    rows = []
    for _ in range(draw(st.integers(*tasks))):
        rank = draw(st.sampled_from([full, full, full, max(1, full // 3), 0]))
        size = draw(st.sampled_from([1.0, 0.3]))
        rows.append(with_spectrum(shape, size * decay ** torch.arange(rank, dtype=torch.float64), generator))
    stored = torch.stack(rows).to(draw(st.sampled_from(dtypes)))
    return Case(stored if stored.dtype == torch.float64 else stored.float())


@st.composite
def embedded(draw, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Cores [T, p, q] and bases Q1 [m, p], Q2 [n, q] with orthonormal columns: matrices of a low common rank."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    p, q = draw(st.sampled_from([(4, 6), (6, 4), (5, 5), (2, 3)]))
    m, n = draw(st.sampled_from([(20, 31), (31, 20), (24, 24)]))
    values = 0.8 ** torch.arange(min(p, q), dtype=torch.float64)
    cores = torch.stack([with_spectrum((p, q), values, generator) for _ in range(draw(st.integers(1, 4)))])
    return cores.to(dtype), orthonormal(m, p, generator).to(dtype), orthonormal(n, q, generator).to(dtype)


def gap(array: np.ndarray, rank: int) -> float:
    """(s_k - s_{k+1}) / s_1: how well SVD_k is defined; 1 at full rank and for zeros."""
    values = np.linalg.svd(array, compute_uv=False)
    if rank >= len(values) or values[0] == 0 or values[rank - 1] <= 1e-13 * values[0]:
        return 1.0
    return float((values[rank - 1] - values[rank]) / values[0])


def truncated(array: np.ndarray, rank: int) -> np.ndarray:
    """SVD_k, one outer product at a time."""
    u, s, vt = np.linalg.svd(array, full_matrices=False)
    total = np.zeros_like(array)
    for i in range(min(rank, len(s))):
        total += s[i] * np.outer(u[:, i], vt[i])
    return total


def lowest(array: np.ndarray, count: int) -> np.ndarray:
    """The `count` lowest components of a matrix, one outer product at a time."""
    u, s, vt = np.linalg.svd(array, full_matrices=False)
    total = np.zeros_like(array)
    for i in range(len(s) - count, len(s)):
        total += s[i] * np.outer(u[:, i], vt[i])
    return total


def polar_factor(array: np.ndarray) -> np.ndarray:
    """The sum of u_i v_iᵀ over the directions above a millionth of the largest."""
    u, s, vt = np.linalg.svd(array, full_matrices=False)
    total = np.zeros_like(array)
    for i in range(len(s)):
        if s[i] > DROPPED * s[0]:
            total += np.outer(u[:, i], vt[i])
    return total


def conditioning(array: np.ndarray) -> float:
    """The smallest singular value over the largest, of those that are not rounding."""
    values = np.linalg.svd(array, compute_uv=False)
    return float(values[values > 1e-9 * values[0]][-1] / values[0])


def whitening(array: np.ndarray) -> float:
    """The same over the directions that a polar factor keeps; 0 where one is about to be dropped."""
    values = np.linalg.svd(array, compute_uv=False)
    shares = values / values[0]
    return 0.0 if np.any((shares > DROPPED / 20) & (shares < DROPPED * 2)) else float(shares[shares > DROPPED][-1])


@st.composite
def nearly_shared(draw, shares=(-5.0, -3.02)) -> tuple[Tensor, float]:
    """Task matrices [T, m, n] in float64 of which two nearly share a direction, and how nearly.

    The directions side by side have σ_min/σ_max = share, drawn between two powers of ten, on the left, the right, or
    both. Every matrix has rank floor(r / T): with all the room taken (T k = r) the square case that real experts give.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape, tasks = draw(st.sampled_from([(12, 12), (24, 12), (12, 30)])), draw(st.integers(2, 4))
    share, sides = 10.0 ** draw(st.floats(*shares)), draw(st.sampled_from([(0,), (1,), (0, 1)]))
    k = min(shape) // tasks
    bases = [orthonormal(side, tasks * k, generator) for side in shape]
    for basis in (bases[side] for side in sides):
        angle = 2 * np.arctan(share)
        basis[:, k] = np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, k]
    values = 0.8 ** torch.arange(k, dtype=torch.float64)
    left, right = (basis.split(k, dim=1) for basis in bases)
    return torch.stack([(u * values) @ v.mT for u, v in zip(left, right, strict=True)]), share


def assert_near(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float, scale: float | None = None) -> None:
    """‖actual - expected‖ ≤ tolerance x ‖expected‖ (or x `scale`, where the result may cancel)."""
    reference = torch.as_tensor(expected, dtype=torch.float64)
    error = float(torch.linalg.vector_norm(actual.double() - reference))
    size = float(torch.linalg.vector_norm(reference)) if scale is None else scale
    assert actual.shape == reference.shape
    assert error <= tolerance * size + 1e-300, f"relative error {error / (size or 1):.2e}, allowed {tolerance:.2e}"
