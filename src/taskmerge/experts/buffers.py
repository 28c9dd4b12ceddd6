"""Integer and bool tensors, which have no mean: equal everywhere, or one rule decides."""

from collections.abc import Sequence
from glob import escape

import numpy as np
import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.quantised import weights_like
from taskmerge.errors import Mismatch, Way
from taskmerge.experts.sources import Source
from taskmerge.specs.merge import OnBuffer

VARIANCE = "running_var"  # of BatchNorm and InstanceNorm: its root is divided by
COUNTER = "num_batches_tracked"  # of BatchNorm: the experts' differ by how long they were trained


def is_variance(name: str) -> bool:
    """Whether a tensor is a running variance, which no merge may take below zero."""
    return name.split(".")[-1] == VARIANCE


def is_counter(name: str) -> bool:
    """Whether a tensor counts batches: the largest count is taken."""
    return name.split(".")[-1] == COUNTER


def common_buffer(
    name: str, code: str, holders: Sequence[Source], values: Sequence[Tensor], rule: OnBuffer, *, keeps: bool = False
) -> Tensor:
    """The one value, as bytes, of a tensor of dtype `code` that several sources hold; `Mismatch` where they differ.

    `keeps`: the caller knows --keep-from, which a hint may name. What
    may be packed weights is never a case for `--on-buffer first`, though whoever says so gets it.
    """
    chosen = values[0]
    odd = next((place for place, value in enumerate(values) if not torch.equal(value, chosen)), None)
    if odd is not None and is_counter(name):
        return _largest(values, code)
    if odd is None or rule == "first":
        return chosen
    keep = f"`--keep-from {holders[odd].task} '{escape(name)}'` copies that of {holders[odd].task}"
    other = keep if keeps else "`--exclude` leaves it out"
    hint = f"`--on-buffer first` takes the first expert's, {other}"
    ways: list[Way] = [{"on_buffer": "first"}]
    if weights_like(name, holders[0].specs[name]):
        hint = (
            "it looks like quantised weights, of which no expert's can stand for the others': dequantise the experts "
            f"first; {other}"
        )
        ways = []
    what = f"the integer tensor differs between {holders[0].where} and {holders[odd].where}"
    raise Mismatch(what, where=f"`{name}`", hint=hint, ways=ways)


def _largest(values: Sequence[Tensor], code: str) -> Tensor:
    """The largest of some counts, as bytes; torch puts few unsigned integers into an order, numpy all."""
    counts = [value.view(DTYPES[code]).numpy() for value in values]
    return torch.from_numpy(np.maximum.reduce(counts)).view(torch.uint8)
