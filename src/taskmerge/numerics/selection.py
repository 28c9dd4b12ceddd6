"""Exact order statistics: the k-th largest of numbers that stream past, or that lie in one tensor.

A radix select on bit patterns: read as integers, the bits of floats have the order of the floats,
once those of negative numbers are turned round. Every pass counts 16 bits of the numbers whose higher bits are
settled already: two passes settle float32, four float64, with at most 65,536 counters a row and rank. Of many numbers
a sample says first where to look: then one pass settles 32 bits, and where the sample was wrong, its count shows it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskmerge.numerics.rank import GUARD

Integers = NDArray[Any]
Rows = Callable[[Tensor], Iterable[Tensor]]
R = TypeVar("R")

DIGIT = 16
BINS = 1 << DIGIT
SHARE = 64  # of every slice, the sample takes the first of so many parts
ENOUGH = 1 << 16  # numbers of a sample that is trusted to say where to look
EDGE = 0.01  # share of the numbers at either end whose ranks a sample does not know
AROUND = 2  # leading digits on either side of the guessed one that are counted too
FEW = 1 << 11  # numbers that are counted one by one: a histogram of their own has more bins
SLICE = 1 << 17  # measured: smaller slices pay for their histograms, larger ones leave the L2 cache


class Scan(Protocol):
    """One pass over slices [row, count] of the same rows: yields f(slice) of each. Call it again for another pass.

    `share` > 1 asks for a sample: of every slice only the first of so many equal parts.
    """

    def __call__(self, f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]: ...


@dataclass(frozen=True, slots=True)
class OrderStatistic:
    """The number at one rank, how many numbers are larger, and how many equal it."""

    value: float
    larger: int
    equal: int

    @property
    def reached(self) -> int:
        """How many numbers are at least this large: the rank, or more where several are equal."""
        return self.larger + self.equal


@dataclass(frozen=True, slots=True)
class _Settled:
    """The leading bits of one order statistic, with the counts of numbers above them and of numbers that share them."""

    bits: int
    larger: int
    equal: int


def share_of(count: int, share: float) -> int:
    """floor(share * count), but at least 1 of at least one; 0.29 of 100 is 29 (see `rank.GUARD`)."""
    return min(count, max(1, math.floor(share * count + GUARD)))


def magnitudes(stack: Tensor) -> Iterator[Tensor]:
    """|x| of every row of a slice."""
    return (row.abs() for row in stack)


def sort_rows(values: Tensor) -> Tensor:
    """Numbers sorted upwards along the last dimension; on the CPU by NumPy, whose vectorised sort is far the faster."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def part_of(piece: Tensor, share: int) -> Tensor:
    """The first of `share` equal parts of a slice [row, count], rounded up."""
    return piece[:, : -(-piece.shape[1] // share)]


def slices(stack: Tensor) -> Scan:
    """One stack [row, *shape] as a scan."""
    flat = stack.reshape(len(stack), stack[0].numel())

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        return (f(part_of(flat[:, start : start + SLICE], share)) for start in range(0, flat.shape[1], SLICE))

    return scan


def largest(
    scan: Scan, ranks: Callable[[int], Sequence[int]], rows: Rows = magnitudes, *, signed: bool = False
) -> list[list[OrderStatistic]]:
    """Per row, the numbers at some ranks (1 is the largest), exactly; magnitudes of the scan's rows by default.

    `ranks` gives the ranks, within 1..count, for the count of numbers in a row. `rows` makes the rows of finite
    numbers [count] from a slice; `signed` says that some may be negative. One pass over the scan for every
    16 bits, or for the first 32 where a sample helps. A scan without numbers gives no rows.
    """
    known = _from_sample(scan, ranks, rows, signed) or _from_all(scan, ranks, rows, signed)
    if known is None:
        return []
    settled = known.settled
    for shift in range(known.width - (known.digits + 1) * DIGIT, -1, -DIGIT):
        following = _Following(rows, signed, [{one.bits for one in row} for row in settled], shift)
        _exhaust(scan(following.count))
        settled = [
            [_descend(one, total[one.bits], rank) for one, rank in zip(row, row_ranks, strict=True)]
            for row, total, row_ranks in zip(settled, following.totals, known.wanted, strict=True)
        ]
    return [[OrderStatistic(_number(one.bits, known.width), one.larger, one.equal) for one in row] for row in settled]


@dataclass(frozen=True, slots=True)
class _Known:
    """Per row and rank, what is settled after some digits of numbers `width` bits wide."""

    settled: list[list[_Settled]]
    wanted: list[Sequence[int]]
    width: int
    digits: int


def _from_all(scan: Scan, ranks: Callable[[int], Sequence[int]], rows: Rows, signed: bool) -> _Known | None:
    """The first digit, by one pass; None of no numbers."""
    leading = _Leading(rows, signed)
    _exhaust(scan(leading.count))
    if not any(histogram.any() for histogram in leading.totals):
        return None
    wanted = [ranks(int(histogram.sum())) for histogram in leading.totals]
    return _Known(leading.settled(wanted), wanted, leading.width, 1)


def _from_sample(scan: Scan, ranks: Callable[[int], Sequence[int]], rows: Rows, signed: bool) -> _Known | None:
    """The first two digits, by a sample and one pass; None where a sample cannot help, or has misled."""
    sample = _Leading(rows, signed)
    _exhaust(scan(sample.count, SHARE))
    counts = [int(histogram.sum()) for histogram in sample.totals]
    if not counts or min(counts) < ENOUGH:
        return None
    near = [ranks(count) for count in counts]
    if any(not EDGE <= rank / count <= 1 - EDGE for row, count in zip(near, counts, strict=True) for rank in row):
        return None
    window = _Window(rows, signed, [[one.bits - AROUND for one in row] for row in sample.settled(near)])
    _exhaust(scan(window.count))
    wanted = [ranks(count) for count in window.counts]
    settled = window.settled(wanted)
    return None if settled is None else _Known(settled, wanted, sample.width, 2)


class _Leading:
    """Counts, per row, the numbers with each leading digit (lowest digit first).

    Slices are counted in several threads at once and add to the same integers, in any order to the same totals:
    results that are handed on slice by slice would hold a histogram each.
    """

    def __init__(self, rows: Rows, signed: bool) -> None:
        self.rows, self.signed = rows, signed
        self.width = 0
        self.totals: list[Integers] = []
        self._lock = Lock()

    def count(self, piece: Tensor) -> None:
        for index, row in enumerate(self.rows(piece)):
            width = 8 * row.element_size()
            leading = _ordered(row, self.signed) >> (width - DIGIT)
            leading = leading.add_(BINS // 2) if self.signed else leading
            histogram = None if len(leading) < FEW else torch.bincount(leading).numpy()
            with self._lock:
                self.width = width
                if index == len(self.totals):
                    self.totals.append(np.zeros(BINS, np.int64))
                if histogram is None:
                    np.add.at(self.totals[index], leading.numpy(), 1)
                else:
                    self.totals[index][: len(histogram)] += histogram

    def settled(self, wanted: Sequence[Sequence[int]]) -> list[list[_Settled]]:
        """The first digit of the numbers at some ranks of each row."""
        lowest = -(BINS // 2) if self.signed else 0
        return [
            [_descend(_Settled(0, 0, 0), histogram, rank, lowest) for rank in row]
            for histogram, row in zip(self.totals, wanted, strict=True)
        ]


class _Window:
    """Counts, per row and guessed rank, the numbers whose first digit is within some digits from `lowest` on, by their
    first two digits, and those above them."""

    def __init__(self, rows: Rows, signed: bool, lowest: Sequence[Sequence[int]]) -> None:
        self.rows, self.signed = rows, signed
        self.size = (2 * AROUND + 1) * BINS
        self.starts = [[digit * BINS for digit in row] for row in lowest]
        self.totals = [[np.zeros(self.size, np.int64) for _ in row] for row in lowest]
        self.above = [[0 for _ in row] for row in lowest]
        self.counts = [0 for _ in lowest]
        self._lock = Lock()

    def count(self, piece: Tensor) -> None:
        for index, row in enumerate(self.rows(piece)):
            bits = _ordered(row, self.signed).numpy()
            if 8 * row.element_size() > 2 * DIGIT:
                bits = bits >> (8 * row.element_size() - 2 * DIGIT)
            for place, start in enumerate(self.starts[index]):
                beyond = bits >= start + self.size
                inside = bits[np.flatnonzero((bits >= start) & ~beyond)].astype(np.int64) - start
                above = int(np.count_nonzero(beyond))
                with self._lock:
                    np.add.at(self.totals[index][place], inside, 1)  # far fewer than a histogram has bins
                    self.above[index][place] += above
            with self._lock:
                self.counts[index] += len(bits)

    def settled(self, wanted: Sequence[Sequence[int]]) -> list[list[_Settled]] | None:
        """The first two digits of the numbers at some ranks; None if one of them lies outside what was counted."""
        found: list[list[_Settled]] = []
        for row, starts, totals, larger in zip(wanted, self.starts, self.totals, self.above, strict=True):
            for rank, total, above in zip(row, totals, larger, strict=True):
                if not above < rank <= above + int(total.sum()):
                    return None
            found.append(
                [
                    _descend(_Settled(0, above, 0), total, rank, start)
                    for rank, start, total, above in zip(row, starts, totals, larger, strict=True)
                ]
            )
        return found


class _Following:
    """Counts, per row and settled leading bits, the numbers that share them and have each following digit."""

    def __init__(self, rows: Rows, signed: bool, settled: list[set[int]], shift: int) -> None:
        self.rows, self.signed, self.shift = rows, signed, shift
        self.totals = [{bits: np.zeros(BINS, np.int64) for bits in known} for known in settled]
        self._lock = Lock()

    def count(self, piece: Tensor) -> None:
        for row, totals in zip(self.rows(piece), self.totals, strict=True):
            bits = _ordered(row, self.signed).numpy()
            leading = bits >> (self.shift + DIGIT)
            for known, total in totals.items():
                digits = bits[leading == known] >> self.shift & (BINS - 1)
                with self._lock:
                    np.add.at(total, digits, 1)


def _exhaust(passing: Iterator[None]) -> None:
    """Runs a pass for its effect."""
    for _ in passing:
        pass


def _descend(parent: _Settled, histogram: Integers, rank: int, lowest: int = 0) -> _Settled:
    """One more digit of the number at a rank: the bin in which the count from above reaches the rank."""
    from_above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_above, rank - parent.larger))
    digit = len(histogram) - 1 - place
    equal = int(histogram[digit])
    larger = parent.larger + int(from_above[place]) - equal
    return _Settled((parent.bits << DIGIT) + digit + lowest, larger, equal)


def _ordered(row: Tensor, signed: bool) -> Tensor:
    """The bits of floats as signed integers of the same order."""
    row = row.cpu()
    integer = {4: torch.int32, 8: torch.int64}[row.element_size()]
    if not signed:
        return row.view(integer)
    bits = (row + 0.0).view(integer)  # -0 becomes 0: they are one number
    return bits ^ ((bits >> (8 * row.element_size() - 1)) & torch.iinfo(integer).max)


def _number(bits: int, width: int) -> float:
    """The float that `_ordered` turned into these bits."""
    integer, floating = (np.int32, np.float32) if width == 32 else (np.int64, np.float64)
    plain = bits if bits >= 0 else bits ^ int(np.iinfo(integer).max)
    return float(np.array(plain, integer).view(floating))
