"""The values that codes and scales stand for: code x scale, rounded once to float32.

That is what the codes' makers calculate with, and it is defined without regard to the arithmetic that follows. A
power of two as scale rounds nothing.
"""

import math

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.header import Scaling, TensorSpec

PIECE = 1 << 18  # elements at a time: all of it stays in the cache
EXPONENTS = ("U8", "F8_E8M0")
"""Scales that are powers of two, 2^(byte - 127)."""
NOT_SIGN_TWICE = ~0x4000


def dequantise(scaling: Scaling, codes: Tensor, scales: Tensor, start: int, out: Tensor) -> None:
    """Fills `out` (float32, 1-D) with elements from `start` on, of which `codes` (uint8) are the bytes.

    `scales` [k, blocks in a row] are the rows of scales that `scale_rows` names for these elements.
    """
    above, _ = scale_rows(scaling, start, len(out))
    for begin in range(0, len(out), PIECE):
        piece = out[begin : begin + PIECE]
        rest = _widen(codes[begin : begin + PIECE], scaling.codes.dtype, piece)
        first, last = scale_rows(scaling, start + begin, len(piece))
        factors = scales[first - above : last - above] * rest  # a power of two: nothing is rounded
        if not math.isfinite(factors.sum().item()):
            piece.mul_(rest)
            factors = scales[first - above : last - above]
        _multiply(scaling, _spread(scaling, factors), start + begin, piece)


def scale_rows(scaling: Scaling, start: int, count: int) -> tuple[int, int]:
    """The rows of scales [first, last) that `count` elements from `start` on belong to."""
    if not count:
        return 0, 0
    first, last = start // scaling.columns, (start + count - 1) // scaling.columns
    return _scale_row(scaling, first), _scale_row(scaling, last) + 1


def scales_in_row(scaling: Scaling) -> int:
    """How many blocks lie side by side."""
    return -(-scaling.columns // scaling.block[1])


def scale_values(raw: Tensor, spec: TensorSpec) -> Tensor:
    """The numbers of some scales (flat) from their bytes, in float32."""
    return raw.view(DTYPES["F8_E8M0" if spec.dtype in EXPONENTS else spec.dtype]).float()


def _scale_row(scaling: Scaling, row: int) -> int:
    """The row of scales that a row of weights has, over all matrices."""
    height = scaling.block[0]
    matrix, inside = divmod(row, scaling.rows)
    return matrix * -(-scaling.rows // height) + inside // height


def _multiply(scaling: Scaling, factors: Tensor, start: int, out: Tensor) -> None:
    """Multiplies elements from `start` on by `factors`: one row for each row of scales, from the first element's on."""
    width, (height, _), done = scaling.columns, scaling.block, 0
    first = _scale_row(scaling, start // width)
    while done < len(out):
        row, column = divmod(start + done, width)
        place = _scale_row(scaling, row) - first
        whole = (len(out) - done) // width
        if column or not whole:  # a part of a row
            count = min(width - column, len(out) - done)
            own = factors[place]
            out[done : done + count].mul_(own[column : column + count] if len(own) > 1 else own)
        else:
            rows = whole if height == 1 else min(whole, _left_in_block(scaling, row))
            count = rows * width
            out[done : done + count].view(rows, width).mul_(factors[place : place + (rows if height == 1 else 1)])
        done += count


def _left_in_block(scaling: Scaling, row: int) -> int:
    """How many rows from `row` on have its scales."""
    inside, height = row % scaling.rows, scaling.block[0]
    return min(height - inside % height, scaling.rows - inside)


def _spread(scaling: Scaling, scales: Tensor) -> Tensor:
    """Rows of scales [k, blocks] as factors of every column [k, columns], or [k, 1] where there is one block."""
    if scales.shape[1] == 1:
        return scales
    rows, blocks = scales.shape
    return scales[:, :, None].expand(rows, blocks, scaling.block[1]).reshape(rows, -1)[:, : scaling.columns]


def _widen(codes: Tensor, dtype: str, out: Tensor) -> float:
    """Fills `out` with the numbers of FP8 codes (uint8) divided by a power of two, which it returns.

    By way of float16, of which both usual types are a part: torch's own conversion of E4M3 takes twenty times as long.
    """
    signed = codes.view(torch.int8)
    if dtype == "F8_E5M2":
        out.copy_(signed.to(torch.int16).mul_(1 << 8).view(torch.float16))
        return 1.0
    if dtype == "F8_E4M3" and len(codes) and int(signed.max()) < 0x7F and int(codes.max()) < 0xFF:  # these two are NaN
        # sign and exponent of 4 bits come to stand in float16's sign and exponent of 5 bits, whose bias is 8 larger
        out.copy_(signed.to(torch.int16).mul_(1 << 7).bitwise_and_(NOT_SIGN_TWICE).view(torch.float16))
        return 256.0
    out.copy_(codes.view(DTYPES[dtype]))
    return 1.0
