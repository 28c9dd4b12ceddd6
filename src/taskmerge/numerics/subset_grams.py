"""Gram matrices of task matrices about the mean of any subset of tasks, from those of all pairs (E6)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskmerge.numerics.leading import Leading, by_gram, leading


def places_of_pairs(count: int) -> dict[tuple[int, int], int]:
    """The place of each pair (s, t), s <= t, among N (N + 1) / 2."""
    pairs = [(first, second) for first in range(count) for second in range(first, count)]
    return {pair: place for place, pair in enumerate(pairs)}


def pair_gram(first: Tensor, second: Tensor) -> Tensor:
    """G_st = A_sᵀ A_t (A [m, n], m >= n) or A_s A_tᵀ (m < n), float64."""
    one, other = first.double(), second.double()
    return one.mT @ other if one.shape[0] >= one.shape[1] else one @ other.mT


def centred_grams(pairs: Tensor, count: int, members: Sequence[int]) -> list[Tensor]:
    """For every member t of a subset the Gram matrix of A_t - mean of the subset.

    `pairs` [N (N + 1) / 2, r, r] are those of all pairs of N matrices, about whatever origin: near their common mean
    little is lost. G_tt - (R_t + R_tᵀ) / n + Q / n², R_t = Σ_s G_ts and Q = Σ_st G_st over the subset.
    """
    places = places_of_pairs(count)

    def gram(first: int, second: int) -> Tensor:
        return pairs[places[first, second]] if first <= second else pairs[places[second, first]].mT

    size = len(members)
    rows = {first: _sum([gram(first, second) for second in members]) for first in members}
    whole = _sum(list(rows.values())) / size**2
    return [gram(one, one) - (rows[one] + rows[one].mT) / size + whole for one in members]


def leading_of(matrix: Tensor, gram: Tensor, k: int) -> Leading:
    """The k leading triplets of a matrix whose Gram matrix is known; where that tells them badly, from scratch."""
    k = min(k, *matrix.shape)
    found = by_gram(matrix, gram.clone(), k) if float(gram.diagonal().sum()) > 0 else None
    return leading(matrix, k, precise=True) if found is None else found


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total
