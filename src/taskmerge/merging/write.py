"""What a job writes: cast once, checked, from `start` on into the staged output."""

import math

from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.writer import Sink
from taskmerge.errors import BadNumber
from taskmerge.merging.plan import TensorJob
from taskmerge.merging.sources import finite


def write(job: TensorJob, sink: Sink, merged: Tensor, start: int) -> None:
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
            sink.write(output.name, cast.contiguous(), low - offset)
        offset += size


def check_numbers(cast: Tensor, part: Tensor, name: str, code: str) -> None:
    """Refuses NaN, infinity and overflow in a result."""
    if finite(cast if cast.element_size() > 1 else cast.float()):
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
