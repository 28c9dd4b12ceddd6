"""Whether models have one origin, by the angles between their weights: cosines, medians over matrices, the rule.

Fine-tuning moves a model by 0.1 to 10% of its norm, so that matrices keep a cosine of 0.995 and more with where they
came from; 90% of a matrix's entries set to zero leave 0.66, noise as large as the weights 0.71. Matrices of n entries
that were trained from another start have cosines around 0 with a spread of 1/√n. The median over matrices counts: one
that was trained anew, or is the same in all models (sinusoids), decides nothing.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from taskmerge.types import Matrix

ALIKE = 0.9
"""Median cosine from which on two models are taken for steps from one another: a step as long as half the weights."""
UNLIKE = 0.5
"""Median cosine below which they are taken for strangers."""

Kin = Literal["equal", "fine-tuning", "far", "unrelated", "unknown"]


def kin(median: float | None, *, shared: bool, moved: bool) -> Kin:
    """What a model is to a base, by the median cosine of its matrices with the base's (None: it has none); `shared`:
    both have some tensor of one name and shape; `moved`: they differ somewhere in these."""
    if not shared:
        return "unrelated"
    if not moved:
        return "equal"
    if median is None:
        return "unknown"
    return "fine-tuning" if median >= ALIKE else "far" if median >= UNLIKE else "unrelated"


def of_weights(gram: Matrix) -> Matrix:
    """Inner products of θ₀, θ₀ + τ_1 ... from those of θ₀, τ_1 ...: the base's row is the first."""
    sums = torch.eye(len(gram), dtype=gram.dtype)
    sums[:, 0] = 1
    return sums @ gram @ sums.T


def cosines(gram: Matrix) -> Matrix:
    """The cosines of vectors by their inner products; 0 beside a zero vector, NaN (nothing to tell) between two."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    both = norms[:, None] * norms
    zero = norms == 0
    found = torch.where(both > 0, gram / both, 0.0).clamp(-1, 1)
    return found.masked_fill(zero[:, None] & zero, torch.nan)


def pooled_cosines(inner: Matrix, squares: Matrix) -> Matrix:
    """Cosines of vectors of which every two share other parts: `inner` are the products over what both have,
    `squares[s, t]` the square of s over it. NaN where one is zero there."""
    both = squares.sqrt() * squares.T.sqrt()
    return torch.where(both > 0, inner / both, torch.nan).clamp(-1, 1)


def medians(cosines: Tensor) -> Matrix:
    """The (lower) median over matrices [matrix, k, k], without NaN; NaN where there is nothing else."""
    if not len(cosines):
        return torch.full(cosines.shape[1:], torch.nan, dtype=cosines.dtype)
    return cosines.nanmedian(dim=0).values


def groups(linked: Matrix) -> list[tuple[int, ...]]:
    """The sets of indices that are linked, directly or by others, each sorted; in the order of their first."""
    left, found = list(range(len(linked))), list[tuple[int, ...]]()
    while left:
        reached, waiting = {left[0]}, [left[0]]
        while waiting:
            here = waiting.pop()
            new = [there for there in left if there not in reached and (linked[here, there] or linked[there, here])]
            reached.update(new)
            waiting += new
        found.append(tuple(sorted(reached)))
        left = [index for index in left if index not in reached]
    return found


def among(chosen: Sequence[int], linked: Matrix) -> list[tuple[int, ...]]:
    """`groups` of two and more among some indices."""
    places = torch.tensor(list(chosen), dtype=torch.long)
    inside = groups(linked[places][:, places])
    return [tuple(chosen[index] for index in group) for group in inside if len(group) > 1]
