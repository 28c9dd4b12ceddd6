"""Whether two results of one merge differ by rounding alone: against a third, computed more precisely.

Rounding differs between versions of torch and types of processors, in the last bits of sums and products. How far
that carries depends on the numbers: a sum that cancels, or singular values close to each other at a cut, carry it
further. So no constant says what rounding can do. The merge is done once more in float64 and not rounded: what the
merge done again here is off from that, tensor by tensor, is what rounding does to these numbers.

An entry is explained by rounding if it is a rounding, to the type that it is stored in, of a number that is off by no
more than `MARGIN` times as much as any of the tensor here, and the usual error of a sum (`SURE`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.dtypes import DTYPES, itemsize
from taskmerge.merging.differences import Look

SLICE = 1 << 17  # entries at a time
MARGIN = 4
"""How many times further off than here a result may be elsewhere: measured on AVX-512, AVX2 and SSE code of MKL and
OpenBLAS, over all methods, it is up to 2.6 times, but for where one is exact by luck (then see `SURE`)."""
SURE = 7
"""A sum of n products is off by at most 7 √n u of its terms, u the unit roundoff: it is more once in 10¹⁰ sums (Higham
and Mary 2019, doi:10.1137/18M1226312, theorem 2.4)."""
FURTHEST = 2.0**-12
"""Share of a tensor's largest entry beyond which a difference is none of last bits: half of float32's digits."""


@dataclass(frozen=True, slots=True)
class LastBits:
    """How many entries differ, and in how many last bits of the type they are stored in, as its largest entry has them:
    n bits are a difference below 2^n units in the last place."""

    entries: int = 0
    bits: int = 0

    def __add__(self, other: "LastBits") -> "LastBits":
        return LastBits(self.entries + other.entries, max(self.bits, other.bits))


@dataclass(frozen=True, slots=True)
class Results:
    """Three results of one merge: a file's, the one done again here, and the exact one (F64)."""

    file: Checkpoint
    again: Checkpoint
    exact: Checkpoint

    def slices(self, look: Look) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A tensor's entries in float64, one slice after the other."""
        numel = self.exact.stored[look.name].numel
        for start in look.through(range(0, numel, SLICE)):
            count = min(SLICE, numel - start)
            file, again, exact = (_values(one, look.name, start, count) for one in (self.file, self.again, self.exact))
            yield file, again, exact


def last_bits(results: Results, look: Look, terms: int, precision: torch.dtype) -> LastBits | None:
    """In how many last bits the file's tensor differs, None where rounding cannot explain it.

    `terms` are as many as any of its sums has, in arithmetic of this `precision`. All three hold the tensor, in one
    shape, and the file in the type of the one done again.
    """
    stored = torch.finfo(DTYPES[results.again.stored[look.name].dtype])
    largest = error = 0.0
    for _, again, exact in results.slices(look):
        largest = max(largest, float(exact.abs().max()))
        error = max(error, float(_beyond(again, exact, stored).max()))
    if not error <= FURTHEST * largest / MARGIN:  # another branch was taken, or nothing is known
        error = FURTHEST * largest / MARGIN
    allowed = MARGIN * error + SURE * math.sqrt(terms) * torch.finfo(precision).eps / 2 * largest
    entries, furthest = 0, 0.0
    for file, again, exact in results.slices(look):
        if not bool((_beyond(file, exact, stored) <= allowed).all()):
            return None
        gap = (file - again).abs()
        entries, furthest = entries + int((gap > 0).sum()), max(furthest, float(gap.max()))
    return LastBits(entries, _bits(furthest, largest, stored))


def _beyond(values: Tensor, exact: Tensor, stored: torch.finfo) -> Tensor:
    """How far entries are from the exact ones, beyond their rounding to the type they are stored in."""
    half = exact.abs() * (stored.eps / 2) + stored.smallest_normal * stored.eps
    return (values - exact).abs() - half


def _bits(gap: float, largest: float, stored: torch.finfo) -> int:
    """The last bits that a difference takes of a number as large as the largest."""
    unit = stored.eps * 2.0 ** math.floor(math.log2(max(largest, stored.smallest_normal)))
    return max(math.ceil(math.log2(gap / unit + 1)), 1)


def _values(checkpoint: Checkpoint, name: str, start: int, count: int) -> Tensor:
    """Entries of a tensor in float64."""
    code = checkpoint.stored[name].dtype
    raw = torch.empty(count * itemsize(code), dtype=torch.uint8)
    checkpoint.read_into(name, raw, start * itemsize(code))
    return raw.view(DTYPES[code]).double()
