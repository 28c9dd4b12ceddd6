"""One matrix of all experts: its spectra, and what lies between tasks. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.numerics.leading import numerical_rank
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import Factors, energy_rank
from taskmerge.numerics.whole import Whole, whole
from taskmerge.spectra.between import KEPT, Alignment, Beside, Overlaps, alignment, overlaps
from taskmerge.spectra.entries import Counts, counts
from taskmerge.spectra.values import Spectra, spectra
from taskmerge.types import Space


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured: at which rank subspaces are compared, and at which ranks energies are given."""

    rank: Rank
    ratios: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One matrix of all tasks about one origin: spectra, and (None where there are no two tasks, or what they are is
    settled by definition) what lies between tasks; `alignment` with a merged checkpoint, if there is one."""

    spectra: Spectra
    counts: Counts
    cosine: Beside | None
    conflict: Beside | None
    overlaps: Overlaps | None
    alignment: Alignment | None


def measure(
    stack: Tensor, solved: Sequence[Whole], shape: tuple[int, int], asked: Asked, about: Space, merged: Tensor | None
) -> Measured:
    """T task matrices [T, m, n] about one origin, of which all values and the leading triplets are known."""
    found, apart = counts(stack), compared(len(stack), about)
    cosine = found.cosines(centred=about == "centred") if apart else None
    factors = [one.factors for one in solved]
    return Measured(
        spectra([one.values for one in solved], min(shape), asked.ratios),
        found,
        cosine,
        found.conflicts(cosine.chance) if cosine is not None else None,
        overlaps(factors, shape) if apart else None,
        alignment(_kept(merged), stack, shape) if merged is not None else None,
    )


def compared(tasks: int, about: Space) -> bool:
    """Whether tasks are held against each other: of two, τ̄_1 = -τ̄_2 says nothing."""
    return tasks > (1 if about == "delta" else 2)


def _kept(merged: Tensor) -> Factors:
    """The components of a merged task matrix that hold all but 5% of its norm."""
    solved = whole(merged, min(merged.shape))
    rank = energy_rank(solved.values, KEPT)
    u, s, vt = solved.factors
    return Factors(u[:, :rank], s[:rank], vt[:rank])


def solve_dense(stack: Tensor, asked: Asked, about: Space) -> list[Whole]:
    """Values of T matrices [T, m, n], and leading triplets where tasks are compared by them."""
    k = asked.rank.resolve(min(stack.shape[-2:])) if compared(len(stack), about) else 0
    return [whole(matrix, k) for matrix in stack]


def solve_cores(cores: Tensor, full: int, asked: Asked) -> list[Whole]:
    """The same of T matrices that are given by small cores [T, p, q] in common orthonormal bases; `full` is the full
    rank of the matrices. Vectors have coordinates in these bases."""
    k, found = asked.rank.resolve(full), []
    for core in cores.double():
        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        s = s[s > numerical_rank(core) * s[0]] if s[0] > 0 else s[:0]
        kept = min(k, len(s))
        found.append(Whole(s, Factors(u[:, :kept], s[:kept], vt[:kept])))
    return found


def solve_given(given: Sequence[Factors], full: int, asked: Asked) -> list[Whole]:
    """The same of T matrices whose triplets are known."""
    k = asked.rank.resolve(full)
    return [Whole(one.s.double(), Factors(one.u[:, :k], one.s[:k], one.vt[:k])) for one in given]
