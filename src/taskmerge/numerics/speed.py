"""How this machine compares with the one whose figures `durations.py` has, by a few hundredths of a second of work."""

import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch

from taskmerge.numerics import durations
from taskmerge.numerics.device import cores
from taskmerge.numerics.lapack import gram as gram_of
from taskmerge.numerics.lapack import settle_thread, single_threaded, top_eigenpairs

ORDER, COMPONENTS = 384, 32
NUMBERS, SWEEPS = 1 << 15, 16
ROUNDS = 3
MOST_THREADS = 8
"""Of them all work at once: virtual cores share what they compute with."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What work takes here, as a multiple of what it takes on the machine that the constants are of."""

    sweeps: float = 1.0
    digests: float = 1.0
    products: float = 1.0
    eigenpairs: float = 1.0

    @property
    def factoring(self) -> float:
        """Of products and eigenpairs mixed, as factorisations mix them."""
        return math.sqrt(self.products * self.eigenpairs)


REFERENCE = Speed()
DIGESTED = 6.0e-10
"""Seconds a byte that SHA-256 takes there."""


@cache
def speed(*, factoring: bool) -> Speed:
    """This machine's, measured once in processor time of threads: other programs count little.

    What factors no matrix is spared loading what does.
    """
    matrix = torch.randn(2 * ORDER, ORDER, generator=torch.Generator().manual_seed(0))
    numbers, block = torch.ones(NUMBERS), bytes(1 << 20)
    with single_threaded(factoring=factoring):
        sweeps = _seconds(lambda: _swept(numbers)) / (durations.SWEEP * NUMBERS * SWEEPS)
        digests = _seconds(lambda: hashlib.sha256(block)) / (DIGESTED * len(block))
        if not factoring:
            return Speed(sweeps, digests)
        products = _seconds(lambda: matrix.mT @ matrix) / durations.product(ORDER, 2 * ORDER, ORDER)
        symmetric = gram_of(matrix)
        found = _seconds(lambda: top_eigenpairs(symmetric.clone(), COMPONENTS))
        return Speed(sweeps, digests, products, found / durations.eigenpairs(ORDER, COMPONENTS))


def _swept(numbers: torch.Tensor) -> None:
    """An elementary operation, several times over: one alone is too short for the clock."""
    for _ in range(SWEEPS):
        torch.abs(numbers)


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of one run, with as many at once as there are cores: the least of each thread, the middle one."""
    threads = min(cores(), MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        found = sorted(pool.map(lambda _: _least(work), range(threads)))
    return found[len(found) // 2]


def _least(work: Callable[[], object]) -> float:
    settle_thread()
    times = []
    for _ in range(ROUNDS):
        before = time.thread_time()
        work()
        times.append(time.thread_time() - before)
    return min(times)
