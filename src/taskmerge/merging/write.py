"""What a job writes: cast once, checked, from `start` on into the staged output."""

import math

from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import BadNumber
from taskmerge.experts.buffers import is_variance
from taskmerge.experts.sources import finite
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.run import Takes

LARGEST = {"F8_E4M3": 464.0}  # types without infinity that torch clips to: beyond this, numbers are not rounded but cut


def write(job: TensorJob, sink: Takes, merged: Tensor, start: int) -> None:
    """Casts once, checks the numbers, and writes elements from `start` on of a job's (joined) tensor."""
    merged = merged.cpu()
    offset = 0
    for output in job.outputs:
        size = math.prod(output.shape)
        low, high = max(start, offset), min(start + len(merged), offset + size)
        if low < high:
            part = merged[low - start : high - start]
            cast = part.to(DTYPES[output.dtype])
            check_numbers(cast, part, output.name, output.dtype)
            check_variances(part, output.name)
            sink.write(output.name, cast.contiguous(), low - offset)
        offset += size


def check_numbers(cast: Tensor, part: Tensor, name: str, code: str) -> None:
    """Refuses NaN, infinity and overflow in a result."""
    if code == "F8_E8M0" and bool((part <= 0).any()):
        raise BadNumber(
            f"{code} holds positive powers of two alone", where=f"`{name}`", hint="write another type with `--dtype`"
        )
    clipped = code in LARGEST and bool((part.abs() > LARGEST[code]).any())
    if not clipped and finite(cast if cast.element_size() > 1 else cast.float()):
        return
    if finite(part):
        largest = float(part.abs().max())
        raise BadNumber(
            f"the merged tensor overflows {code}: its largest magnitude is {largest:.4g}", where=f"`{name}`",
            hint="write a wider type, such as `--dtype bfloat16` or `--dtype float32`, or use a smaller coefficient",
        )  # fmt: skip
    raise BadNumber(
        "the merged tensor holds NaN or infinity",
        where=f"`{name}`",
        hint="use smaller coefficients or `--compute-dtype float64`",
    )


def check_variances(part: Tensor, name: str) -> None:
    """Refuses running variances below zero in a merged model: their square root is divided by."""
    if is_variance(name) and bool((part < 0).any()):
        low = int((part < 0).sum())
        raise BadNumber(
            f"a variance would be below zero: {float(part.min()):.4g} at the lowest, in {low:,} entries",
            where=f"`{name}`", hint="use a smaller coefficient, or a method that averages (`--method average`)",
        )  # fmt: skip
