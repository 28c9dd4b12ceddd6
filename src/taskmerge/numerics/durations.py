"""How long arithmetic takes, in seconds of one core of the machine that these constants were measured on.

An AMD EPYC with AVX-512 (two virtual cores, both busy), torch 2.14.1, one thread a call; `speed.py` says how another
machine compares. They are for predictions: shapes alone count, not what the numbers are like.
"""

from taskmerge.numerics.lapack import PARTIAL
from taskmerge.numerics.rank import Rank

FLOP, DOUBLE_FLOP = 1.0e-11, 2.0e-11
"""A multiplication or an addition in a product of matrices, float32 and float64."""
PAIRS, DOUBLE_PAIRS = 0.9e-10, 1.9e-10
"""All eigenpairs of a symmetric matrix of order n take so many times n³."""
SOME_PAIRS, SOME_ROWS = 2.6e-11, 1.65e-8
"""The leading seventh of them or fewer, in float32: so many times n³, and n²."""
SWEEP = 1.0e-10
"""One elementary operation on one number, the slice in the cache."""
DEEP, SQUARE = 0.5, 1.5
"""Share of all components above which, and ratio of sides below which, the weakest ones are so weak (in noise) that a
float32 Gram matrix seldom answers, and float64 has to."""


def product(m: int, k: int, n: int, *, double: bool = False) -> float:
    """[m, k] times [k, n]."""
    return 2.0 * m * k * n * (DOUBLE_FLOP if double else FLOP)


def gram(m: int, n: int, *, double: bool = False) -> float:
    """The Gram matrix of the smaller side."""
    return float(m) * n * min(m, n) * (DOUBLE_FLOP if double else FLOP)


def eigenpairs(n: int, k: int, *, double: bool = False) -> float:
    """The k leading eigenpairs of a symmetric matrix of order n."""
    if k * PARTIAL > n:
        return (DOUBLE_PAIRS if double else PAIRS) * float(n) ** 3
    return (2 if double else 1) * (SOME_PAIRS * float(n) ** 3 + SOME_ROWS * float(n) ** 2)


def leading(m: int, n: int, k: int) -> float:
    """The k leading singular triplets of a matrix [m, n]: Gram matrix, eigenpairs, the other side, residuals."""
    r = min(m, n)
    k = min(k, r)

    def attempt(double: bool) -> float:
        return gram(m, n, double=double) + eigenpairs(r, k, double=double) + 2 * product(m, n, k, double=double)

    twice = k > DEEP * r and max(m, n) < SQUARE * r
    return attempt(False) + (attempt(True) if twice else 0.0)


def spectrum(m: int, n: int) -> float:
    """All singular values of a matrix [m, n], without vectors."""
    r = min(m, n)
    return gram(m, n, double=True) + DOUBLE_PAIRS / 2 * float(r) ** 3


def polar(m: int, n: int) -> float:
    """The polar factor of a matrix [m, n]."""
    r = min(m, n)
    root = eigenpairs(r, r, double=True) + product(r, r, r, double=True)
    return gram(m, n, double=True) + root + product(m, r, n)


def truncated(m: int, n: int, tasks: int, rank: object) -> float:
    """The sum of truncations of `tasks` matrices [m, n]; of all of them, unless `rank` is one."""
    rank = rank if isinstance(rank, Rank) else Rank("ratio", 1.0)
    if rank.kind == "energy":
        return tasks * (spectrum(m, n) + leading(m, n, min(m, n) // 2)) + product(m, tasks * min(m, n) // 2, n)
    k = rank.resolve(min(m, n))
    return tasks * leading(m, n, k) + product(m, tasks * k, n)
