"""Whether models have one origin, by the angles between their weights: cosines, medians over matrices, the rule.

Fine-tuning moves a model by 0.1 to 10% of its norm, so that matrices keep a cosine of 0.995 and more with where they
came from; training on for about as long as the base was trained leaves 0.8 to 0.9 of small networks, noise as large as
the weights 0.71, 90% of the entries set to zero 0.66. Matrices of n entries that were trained from another start, or
whose neurons stand in another order, have cosines around 0 with a spread of 1/√n. The median over matrices counts: one
that was trained anew, or is alike in all models (sinusoids, norms, what all share in their mean), decides nothing.
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

LONGEST = 1.25
"""Median ratio of lengths beyond which (and below its inverse) no step explains it: matrices were multiplied."""

Kin = Literal["equal", "fine-tuning", "far", "unrelated", "unknown"]


def kin(median: float | None, scale: float | None, *, shared: bool, moved: bool) -> Kin:
    """What a model is to a base, by the medians over matrices of the cosine with the base's and of the ratio of their
    lengths (None: it has none); `shared`: both have some tensor of one name and shape; `moved`: they differ somewhere
    in these."""
    if not shared:
        return "unrelated"
    if not moved:
        return "equal"
    if median is None:
        return "unknown"
    if median < UNLIKE:
        return "unrelated"
    return "fine-tuning" if median >= ALIKE and in_step(scale) else "far"


def in_step(scale: float | None) -> bool:
    """Whether a ratio of lengths is one that steps leave."""
    return scale is None or 1 / LONGEST <= scale <= LONGEST


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


def medians(values: Tensor) -> Tensor:
    """The (lower) median over matrices [matrix, ...], without NaN; NaN where there is nothing else."""
    if not len(values):
        return torch.full(values.shape[1:], torch.nan, dtype=values.dtype)
    return values.nanmedian(dim=0).values


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
