"""STAR: spectral truncation that keeps the nuclear norm, then averaging."""

from typing import Annotated

import torch
from torch import Tensor

from taskmerge.methods.average import average
from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option, Options
from taskmerge.numerics import durations
from taskmerge.numerics.centre import shares
from taskmerge.numerics.powers import exponent_of, times_power
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Matrix, Weights

SLACK = 1e-6  # float32 singular values carry an error of about 1e-7: an exact share must not slip by one


def components_for(values: Tensor, eta: float) -> int:
    """The least k, at least 1, whose k leading values hold the share `eta` of their sum."""
    cumulative = values.double().cpu().cumsum(0)
    return int((cumulative < (1 - SLACK) * eta * cumulative[-1]).sum()) + 1


def growth(values: Tensor, kept: Tensor) -> float:
    """Σ s / Σ_{i≤k} s, both added up near 1: large singular values add up to more than float32 holds."""
    exponent = exponent_of(float(values[0]))
    whole, part = (times_power(s, -exponent).sum() for s in (values, kept))
    return float(whole / part)


def takes(m: int, n: int, tasks: int, options: Options) -> float:
    """Seconds: every task's spectrum, and the components up to a share of it."""
    r = min(m, n)
    k = max(1, round(r * float(str(options["eta"])) ** 2))  # of a spectrum that falls evenly, or faster
    return tasks * (durations.spectrum(m, n) + durations.leading(m, n, k) + durations.product(m, k, n))


@method(
    space="delta",
    reads="matrix",
    title="STAR: spectral truncation and rescale",
    formula="θ = θ₀ + Σ_t w_t (‖τ_t‖_* / ‖SVD_k(τ_t)‖_*) SVD_k(τ_t) / Σ_t w_t on matrices, θ̄ elsewhere",
    paper="arXiv:2502.10339",
    elsewhere=average,
    notes=("k differs by task and tensor; with eta 1 it is the average",),
    laws=Laws(equal_experts={"eta": 1.0}),
    work=Work(matrix=takes),
)
def star(
    matrices: TaskMatrices,
    weights: Weights,
    *,
    eta: Annotated[float, Option("share of the nuclear norm that decides the rank", low=0, high=1)] = 0.4,
) -> Matrix:
    """The base plus the average of truncated task vectors whose nuclear norm is restored.

    k_t is the least rank with Σ_{i≤k} s_i ≥ η Σ_i s_i; the kept values grow by Σ s / Σ_{i≤k} s (Lee et al.,
    STAR; their code counts η in percent). Returns the merged task vector, Σ w_t over Σ w_t.
    """
    spectra = matrices.singular_values()
    counts = [components_for(values, eta) for values in spectra]
    total = torch.zeros_like(matrices.stack[0])
    for share, values, count, (u, s, vt) in zip(
        shares(weights), spectra, counts, matrices.top(max(counts)), strict=True
    ):
        kept = s[:count]
        grown = kept * (share * growth(values, kept))
        total += (u[:, :count] * grown) @ vt[:count]
    return total
