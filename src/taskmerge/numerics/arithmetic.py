"""What the last bits of a result depend on beside inputs and options: torch, the processor, and how both round here.

MKL and OpenBLAS choose their code by maker, type and flags of the processor, by its caches, and by environment
variables of their own; they cannot be asked for their choice everywhere. Their results can: fixed numbers are summed,
multiplied and factored, and the digest of what comes out (`rounding`) is the same wherever the same code ran.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from taskmerge.numerics.lapack import gram, single_threaded, top_eigenpairs

PRECISIONS = (torch.float32, torch.float64)
LENGTH = 2051
"""Entries of a row that is summed: no multiple of a vector's length, and too few for torch to take several threads."""
PRODUCTS = ((8, 24, 8), (33, 129, 65), (16, 2048, 16), (128, 512, 128))
"""[m, k] times [k, n]: small and large ones are different code, and sums over k are cut at different places."""
FACTORED = (16, 96)
"""Orders of the matrices that are factored: below and above where blocked code begins."""
DIGITS = 16
"""Hexadecimal ones of the digest."""


@cache
def arithmetic(device: torch.device, *, products: bool, factors: bool) -> dict[str, str]:
    """What the bytes of a result depend on, in words that can be compared: of one that was computed on `device`, by
    sums alone, by `products` of matrices too, or by `factors` of matrices as well."""
    found = {"torch": str(torch.__version__), "cpu": torch.backends.cpu.get_cpu_capability()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    if factors:
        found["scipy"] = _version("scipy")
    return {**found, "rounding": _digest(_results(device, products=products, factors=factors))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _digest(results: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _results(device: torch.device, *, products: bool, factors: bool) -> Iterator[Tensor]:
    """What arithmetic gives here: that of a merge, on one thread."""
    for dtype in PRECISIONS:
        yield from _sums(device, dtype)
    if products:
        with single_threaded(factoring=factors):
            for dtype in PRECISIONS:
                yield from _products(device, dtype)
                yield from _factors(device, dtype) if factors else ()


def _sums(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Entry by entry, over tasks, and over all entries."""
    rows = _numbers(7, LENGTH, dtype=dtype).to(device)
    x, y = rows[0], rows[1]
    yield from (torch.add(x, y, alpha=0.3), torch.lerp(x, y, 0.3), torch.addcmul(x, x, y), x / y, x.abs().sqrt())
    yield from (x.exp(), x.tanh(), x.acos(), rows.sum(0), rows.mean(0), rows.sum(), rows.norm(dim=1))


def _products(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Matrices with matrices, with vectors, and vectors with vectors, however they lie."""
    for m, k, n in PRODUCTS:
        a, b = (_numbers(*shape, dtype=dtype).to(device) for shape in ((m, k), (k, n)))
        yield from (a @ b, b.mT @ a.mT, a.mT.contiguous().mT @ b, a @ b[:, 0], a[0].dot(b[:, 0]))


def _factors(device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Gram matrices, some and all of their eigenpairs, and singular values."""
    for order in FACTORED:
        symmetric = gram(_numbers(order, 3 * order, dtype=dtype).to(device))
        yield symmetric.clone()
        yield from torch.linalg.eigh(symmetric)
        yield from top_eigenpairs(symmetric, order // 8)
        yield torch.linalg.svdvals(_numbers(order, order // 2, dtype=dtype).to(device))


def _numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Fixed numbers of either sign within 1/3, with digits to their last place."""
    count = math.prod(shape)
    scattered = (torch.arange(count) + count) * 2654435761 % (1 << 24)
    return ((scattered.double() / (1 << 23) - 1) / 3).to(dtype).reshape(shape)
