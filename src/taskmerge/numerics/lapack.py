"""Symmetric Gram matrices and their eigenpairs by LAPACK, without holding Python's interpreter lock.

scipy's Python wrappers of BLAS and LAPACK keep the lock, so two threads gain nothing. The same routines stand as C
pointers in `scipy.linalg.cython_blas` and `cython_lapack`; `ctypes` lets the lock go while it calls them.
"""

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

PARTIAL = 7  # up to n / 7 eigenpairs LAPACK's range driver is the faster one, above it all pairs by divide and conquer

BLOCK = 512  # rows (of the longer side) that are widened to float64 at a time

_LETTER = {torch.float32: "s", torch.float64: "d"}
_REAL: dict[torch.dtype, type[ctypes.c_float] | type[ctypes.c_double]] = {
    torch.float32: ctypes.c_float,
    torch.float64: ctypes.c_double,
}
_ARGUMENTS = {"syrk": 10, "syevr": 21, "sytrd": 10, "sterf": 4, "stemr": 21, "ormtr": 13}
Routine = Callable[..., None]


class LapackError(ArithmeticError):
    """A LAPACK routine ended with `info` other than 0, or with fewer eigenvalues than asked for."""


def load_routines() -> None:
    """Imports scipy's libraries now; a Ctrl-C while they are being imported can get lost in them."""
    for name in _ARGUMENTS:
        routine(name, torch.float32)


@contextmanager
def single_threaded(*, factoring: bool = True) -> Iterator[None]:
    """Everything inside runs BLAS, LAPACK and torch on one thread a call; the former settings come back at the end.

    Matrices are spread over threads, not the arithmetic inside one: that is faster, and the bytes of a result do
    not depend on how many threads there are. The setting is the process's: enter it once, around all work, before
    the worker threads start. Work that is not `factoring` any matrix is spared loading scipy (a tenth of a second).
    """
    if factoring:
        load_routines()  # a library that is not loaded yet cannot be limited
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def settle_thread() -> None:
    """Makes a new worker thread take over the process's thread count: call it first there.

    torch hands the count to OpenMP and MKL thread by thread, on the first call that asks; until then a product there
    runs on all cores, and its last bits differ from those of one thread.
    """
    torch.set_num_threads(torch.get_num_threads())


def gram(matrix: Tensor) -> Tensor:
    """The lower triangle of AᵀA (A [m, n], m >= n) or AAᵀ (m < n), in the matrix's own precision; zeros above it.

    Half the work of a general product (`syrk`).
    """
    rows, columns = matrix.shape
    result = matrix.new_zeros(min(rows, columns), min(rows, columns))
    _add_gram(result, matrix, rows >= columns)
    return result


def precise_gram(matrix: Tensor) -> Tensor:
    """`gram` in float64, widened a block at a time: a float64 copy of the matrix would be two more of it."""
    if matrix.dtype == torch.float64:
        return gram(matrix)
    rows, columns = matrix.shape
    result = matrix.new_zeros(min(rows, columns), min(rows, columns), dtype=torch.float64)
    for block in torch.split(matrix, BLOCK, dim=0 if rows >= columns else 1):
        _add_gram(result, block.double(), rows >= columns)
    return result


def _add_gram(result: Tensor, matrix: Tensor, tall: bool) -> None:
    """Adds the lower triangle of AᵀA (`tall`) or AAᵀ to `result`.

    A row-major matrix is a column-major transpose to BLAS, and the upper triangle there the lower one here.
    """
    syrk = routine("syrk", matrix.dtype) if matrix.is_cpu else None
    rows, columns = matrix.shape
    if syrk is None:
        result += torch.tril(matrix.mT @ matrix if tall else matrix @ matrix.mT)
        return
    strided = rows > 1 and matrix.stride(1) == 1 and matrix.stride(0) > columns
    matrix = matrix if strided else matrix.contiguous()
    real = _REAL[matrix.dtype]
    syrk(
        _char("U"), _char("N" if tall else "T"), _int(columns if tall else rows), _int(rows if tall else columns),
        ctypes.byref(real(1)), matrix.data_ptr(), _int(matrix.stride(0) if strided else columns),
        ctypes.byref(real(1)), result.data_ptr(), _int(len(result)),
    )  # fmt: skip


def top_eigenpairs(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues [k], descending, and their eigenvectors as rows [k, n] of a lower triangle [n, n].

    May overwrite `symmetric`. Raises `LapackError` when the solver fails.
    """
    n = len(symmetric)
    syevr = routine("syevr", symmetric.dtype)
    if syevr is None or k * PARTIAL > n:
        return _all_eigenpairs(symmetric, k)
    values = symmetric.new_empty(n)
    vectors = symmetric.new_empty(k, n)
    work = symmetric.new_empty(_workspace(symmetric.dtype, n)[0])
    counts = torch.empty(_workspace(symmetric.dtype, n)[1], dtype=torch.int32)
    support = torch.empty(2 * k, dtype=torch.int32)
    computed, info = ctypes.c_int(), ctypes.c_int()
    real = _REAL[symmetric.dtype]
    syevr(
        _char("V"), _char("I"), _char("U"), _int(n), symmetric.data_ptr(), _int(n),
        ctypes.byref(real(0)), ctypes.byref(real(0)), _int(n - k + 1), _int(n), ctypes.byref(real(0)),
        ctypes.byref(computed), values.data_ptr(), vectors.data_ptr(), _int(n), support.data_ptr(),
        work.data_ptr(), _int(len(work)), counts.data_ptr(), _int(len(counts)), ctypes.byref(info),
    )  # fmt: skip
    if info.value != 0 or computed.value != k:
        raise LapackError(f"syevr: info {info.value}, {computed.value} of {k} eigenvalues")
    return values[:k].flip(0), vectors.flip(0)


def _all_eigenpairs(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by torch's divide and conquer, which computes all n pairs (and lets the lock go by itself)."""
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch does not annotate it
        raise LapackError(str(error)) from error
    start = len(symmetric) - k
    return values[start:].flip(0), vectors[:, start:].flip(1).mT.contiguous()


@cache
def routine(name: str, dtype: torch.dtype) -> Routine | None:
    """BLAS's or LAPACK's `name` for a precision; None where this scipy was built with 64-bit LAPACK integers."""
    module = importlib.import_module(f"scipy.linalg.cython_{'blas' if name == 'syrk' else 'lapack'}")
    capsule = module.__pyx_capi__[_LETTER[dtype] + name]
    title = _capsule_name(capsule)
    if title is None or b", int *" not in title:
        return None
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * _ARGUMENTS[name])
    return prototype(_capsule_pointer(capsule, title))


def _capsule_name(capsule: object) -> bytes | None:
    """The C signature that Cython wrote on the capsule."""
    call = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    signature: bytes | None = call(capsule)
    return signature


def _capsule_pointer(capsule: object, title: bytes) -> int:
    """The address of the function inside the capsule."""
    call = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    address: int = call(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, title)
    return address


@cache
def _workspace(dtype: torch.dtype, n: int) -> tuple[int, int]:
    """The sizes of syevr's two work arrays for order n, as LAPACK's query names them."""
    syevr = routine("syevr", dtype)
    work, counts, unused = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=dtype)
    computed, info = ctypes.c_int(), ctypes.c_int()
    zero = _REAL[dtype](0)
    if syevr is not None:
        syevr(
            _char("V"), _char("I"), _char("U"), _int(n), unused.data_ptr(), _int(n),
            ctypes.byref(zero), ctypes.byref(zero), _int(1), _int(n), ctypes.byref(zero),
            ctypes.byref(computed), unused.data_ptr(), unused.data_ptr(), _int(n), counts.data_ptr(),
            work.data_ptr(), _int(-1), counts.data_ptr(), _int(-1), ctypes.byref(info),
        )  # fmt: skip
    return max(int(work.item()), 26 * n), max(int(counts.item()), 10 * n)


def _int(value: int) -> object:
    return ctypes.byref(ctypes.c_int(value))


def _char(letter: str) -> object:
    return ctypes.byref(ctypes.c_char(letter.encode()))
