"""All eigenvalues of a symmetric matrix and its leading eigenvectors, from one reduction to tridiagonal form.

LAPACK's own drivers give either all values, or some values with their vectors: asking for both would reduce the matrix
twice, which is nearly all of the work.
"""

import ctypes

import torch
from torch import Tensor

from taskmerge.numerics.lapack import LapackError, routine

BLOCK = 64
"""Columns that are reduced, or turned back, at a time."""
REAL = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def values_and_top(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The eigenvalues [n], descending, and the first k eigenvectors as rows [k, n] of a lower triangle [n, n].

    May overwrite `symmetric`. Raises `LapackError` where a routine fails.
    """
    n = len(symmetric)
    if n < 2 or not symmetric.is_cpu or routine("sytrd", symmetric.dtype) is None:
        return _divided(symmetric, k)
    diagonal, beside, reflectors = (symmetric.new_empty(n) for _ in range(3))
    work = symmetric.new_empty(BLOCK * n)
    _call("sytrd", "U", n, symmetric, n, diagonal, beside, reflectors, work, len(work))
    values, rest = diagonal.clone(), beside.clone()
    _call("sterf", n, values, rest)
    vectors = _top(diagonal, beside, k)
    if k:
        _call("ormtr", "L", "U", "N", n, k, symmetric, n, reflectors, vectors, n, work, len(work))
    return values.flip(0), vectors.flip(0)


def _top(diagonal: Tensor, beside: Tensor, k: int) -> Tensor:
    """The eigenvectors of the k largest eigenvalues of a tridiagonal matrix, ascending, as rows [k, n]."""
    n = len(diagonal)
    vectors = diagonal.new_empty(k, n)
    if not k:
        return vectors
    values, work = diagonal.new_empty(n), diagonal.new_empty(18 * n)
    support, counts = (torch.empty(size, dtype=torch.int32) for size in (2 * k, 10 * n))
    found = ctypes.c_int()
    _call(
        "stemr", "V", "I", n, diagonal, beside, 0.0, 0.0, n - k + 1, n, found, values, vectors, n, k, support, 1,
        work, len(work), counts, len(counts),
    )  # fmt: skip
    if found.value != k:
        raise LapackError(f"stemr: {found.value} of {k} eigenvalues")
    return vectors


def _divided(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by divide and conquer, which computes all vectors."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch does not annotate it
        raise LapackError(str(error)) from error
    return values.flip(0), vectors.flip(1).mT[:k].contiguous()


def _call(name: str, *arguments: object) -> None:
    """A LAPACK routine with tensors, numbers and letters in the places where it wants their addresses."""
    (dtype,) = {one.dtype for one in arguments if isinstance(one, Tensor) and one.is_floating_point()}
    info = ctypes.c_int()
    found = routine(name, dtype)
    if found is None:
        raise LapackError(f"{name} is not there")
    found(*(_address(one, dtype) for one in arguments), ctypes.byref(info))
    if info.value != 0:
        raise LapackError(f"{name}: info {info.value}")


def _address(argument: object, dtype: torch.dtype) -> object:
    """Where an argument lies: what LAPACK takes in its place."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, ctypes.c_int):
        return ctypes.byref(argument)
    if isinstance(argument, str):
        return ctypes.byref(ctypes.c_char(argument.encode()))
    if isinstance(argument, int):
        return ctypes.byref(ctypes.c_int(argument))
    if isinstance(argument, float):
        return ctypes.byref(REAL[dtype](argument))
    raise TypeError(f"no address of a {type(argument).__name__}")
