"""What a spectrum says of one task's matrix: ranks, energies, the law of its tail. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import energy_rank
from taskmerge.spectra.tail import NONE, power_law

ENERGY = 0.95
"""The share of Σ s² that the energy rank holds."""


@dataclass(frozen=True, slots=True)
class Spectra:
    """T spectra of matrices [m, n] with full rank r = min(m, n). All tensors are float64 on the CPU.

    `values` [T, r], descending, zero from the numerical rank on. By task [T]: `norm` ‖A‖_F, `largest` s_1,
    `components` above the numerical rank, `energy_rank` the least k with 95% of Σ s², `entropy_rank` exp H(s / Σ s)
    (Roy and Vetterli 2007), `stable_rank` ‖A‖_F² / s_1². `energy` and `nuclear` [T, R] are the shares of Σ s² and of
    Σ s in the leading components, at given ranks. `exponent`, `tail`, `distance`: see `tail.power_law`, of the squares.
    Ranks of a zero matrix are 0, its shares and exponent NaN.
    """

    values: Tensor
    norm: Tensor
    largest: Tensor
    components: Tensor
    energy_rank: Tensor
    entropy_rank: Tensor
    stable_rank: Tensor
    energy: Tensor
    nuclear: Tensor
    exponent: Tensor
    tail: Tensor
    distance: Tensor


def spectra(values: Sequence[Tensor], full: int, ratios: Sequence[Rank]) -> Spectra:
    """What T spectra say, each of singular values above its numerical rank, descending."""
    counts = [rank.resolve(full) for rank in ratios]
    tails = [power_law(s) if len(s) else NONE for s in values]
    rows = [s.double().cpu() for s in values]
    table = torch.zeros(len(rows), full, dtype=torch.float64)
    for row, s in zip(table, rows, strict=True):
        row[: len(s)] = s
    return Spectra(
        table,
        _numbers(float(s.norm()) for s in rows),
        table[:, 0],
        _numbers(len(s) for s in rows),
        _numbers(energy_rank(s, ENERGY) for s in rows),
        _numbers(_entropy_rank(s) for s in rows),
        _numbers(float((s / s[0]).square().sum()) if len(s) else 0 for s in rows),
        torch.stack([_shares(s.square(), counts) for s in rows]),
        torch.stack([_shares(s, counts) for s in rows]),
        _numbers(tail.exponent for tail in tails),
        _numbers(tail.length for tail in tails),
        _numbers(tail.distance for tail in tails),
    )


def _numbers(found: object) -> Tensor:
    return torch.tensor(list(found), dtype=torch.float64)  # type: ignore[call-overload]  # an iterable of numbers


def _entropy_rank(s: Tensor) -> float:
    """exp H(p) of p = s / Σ s."""
    if not len(s):
        return 0.0
    p = s / s.sum()
    return math.exp(float(-torch.xlogy(p, p).sum()))


def _shares(amounts: Tensor, counts: Sequence[int]) -> Tensor:
    """The share of the first k of them, for every count k; NaN where there is nothing."""
    if not len(amounts):
        return torch.full((len(counts),), torch.nan, dtype=torch.float64)
    sums = amounts.cumsum(0)
    return torch.stack([sums[min(count, len(sums)) - 1] for count in counts]) / sums[-1]
