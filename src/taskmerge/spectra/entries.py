"""What single entries say: zeros, cosines and sign conflicts, added up slice by slice. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.numerics.inner import SLICE, gram
from taskmerge.spectra import chance
from taskmerge.spectra.between import Beside
from taskmerge.types import Stack


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over the entries of T rows: `inner` products [T, T] in float64, `differing` and `touched` [T, T], how many
    are non-zero in both and differ in sign, or are non-zero in both; `numel` entries."""

    inner: Tensor
    differing: Tensor
    touched: Tensor
    numel: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.inner + other.inner, self.differing + other.differing, self.touched + other.touched,
            self.numel + other.numel,
        )  # fmt: skip

    @property
    def zeros(self) -> Tensor:
        """The share of entries that are zero, by task [T]."""
        return (self.numel - self.touched.diagonal()) / self.numel

    @property
    def norms(self) -> Tensor:
        """[T]"""
        return self.inner.diagonal().clamp(min=0).sqrt()

    def cosines(self, *, centred: bool) -> Beside:
        """Cosines [T, T]; by chance 0, and of centred vectors what orthogonal ones have once they are centred."""
        norms = self.norms
        both = norms[:, None] * norms
        value = torch.where(both > 0, self.inner / both, torch.nan).clamp(-1, 1)
        level = chance.centred_cosines(norms) if centred else torch.where(both > 0, 0.0, torch.nan)
        return Beside(value, level)

    def conflicts(self, level: Tensor) -> Beside:
        """The share of entries [T, T] that are non-zero in both and differ in sign, by chance for cosines `level`."""
        touched = self.touched / self.numel
        return Beside(self.differing / self.numel, chance.sign_conflict(touched, level.nan_to_num(0.0)))


def counts(stack: Stack) -> Counts:
    """The sums over a stack of T rows."""
    return add(_slice(piece) for piece in torch.split(stack.reshape(len(stack), -1), SLICE, dim=1))


def add(found: Iterable[Counts]) -> Counts:
    """All of them together."""
    first, *more = found
    for one in more:
        first = first + one
    return first


def _slice(rows: Tensor) -> Counts:
    """Of few enough entries that float32 counts them exactly."""
    up, down = (rows > 0).to(rows.dtype), (rows < 0).to(rows.dtype)
    crossed = up @ down.T
    touched = up + down
    return Counts(gram(rows), (crossed + crossed.T).double(), (touched @ touched.T).double(), rows.shape[1])
