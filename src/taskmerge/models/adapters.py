"""Adapters of features: small modules between an encoder and a task's head, and their files."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmerge.checkpoint.checkpoint import Checkpoint, open_plain
from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.errors import BadFile, Mismatch, listed
from taskmerge.models.contract import Features, Head
from taskmerge.models.heads import DAMAGED
from taskmerge.seeds import uniform_at


class SurgeryAdapter(nn.Module):
    """z - U relu(D z) of features z [B, D], or of maps [B, D, h, w] at every place (Representation Surgery,
    arXiv:2402.02705). Features are as the encoder gives them, not normalised.

    `down` [r, D] and `up` [D, r], frozen until `requires_grad_`.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = _frozen(down), _frozen(up)

    def forward(self, features: Features) -> Features:
        return features - _across(functional.relu(_across(features, self.down)), self.up)


class ProbAdapter(nn.Module):
    """z minus a bias that is drawn (ProbSurgery): h = relu(E z), the bias's mean A h and log variance B h.

    `encode` E [h, D], `mean` A [D, h] and `log_variance` B [D, h], frozen until `requires_grad_`. Features as for
    `SurgeryAdapter`.
    """

    def __init__(self, encode: Tensor, mean: Tensor, log_variance: Tensor) -> None:
        super().__init__()
        self.encode, self.mean, self.log_variance = _frozen(encode), _frozen(mean), _frozen(log_variance)

    def moments(self, features: Features) -> tuple[Features, Features]:
        """The bias's mean and log variance, each shaped as the features."""
        hidden = functional.relu(_across(features, self.encode))
        return _across(hidden, self.mean), _across(hidden, self.log_variance)

    def forward(self, features: Features, noise: Features | None = None) -> Features:
        """z - mean; with `noise` (standard normal, shaped as the features) z - (mean + noise · exp(½ log variance))."""
        mean, log_variance = self.moments(features)
        return features - (mean if noise is None else mean + noise * torch.exp(0.5 * log_variance))


class Adapted(nn.Module):
    """A head behind an adapter of its features."""

    def __init__(self, adapter: nn.Module, head: Head) -> None:
        super().__init__()
        self.adapter, self.head = adapter, head

    def forward(self, features: Features) -> Tensor:
        return self.head(self.adapter(features))


Adapter = SurgeryAdapter | ProbAdapter
FORMS: Mapping[type[Adapter], tuple[str, tuple[str, ...]]] = {
    SurgeryAdapter: ("down", ("up",)),
    ProbAdapter: ("encode", ("mean", "log_variance")),
}
"""Of each kind, the tensor [r, D] that reads features and those [D, r] that write them: its file's whole content."""


# --- fresh ones ------------------------------------------------------------------------------------------------


def surgery(width: int, task: str, *, rank: int = 16, seed: int = 0) -> SurgeryAdapter:
    """An adapter that changes nothing yet: `up` is zero, `down` a function of seed and task alone."""
    return SurgeryAdapter(_kaiming(rank, width, task, seed), torch.zeros(width, rank))


def prob_surgery(width: int, task: str, *, hidden: int = 128, seed: int = 0) -> ProbAdapter:
    """An adapter whose bias has mean 0 and variance 1 yet: `encode` is a function of seed and task alone."""
    encode = _kaiming(hidden, width, task, seed)
    return ProbAdapter(encode, torch.zeros(width, hidden), torch.zeros(width, hidden))


def _kaiming(rows: int, width: int, task: str, seed: int) -> Tensor:
    """Kaiming's uniform numbers with a = √5, as torch's linear layers start: between ±1/√width."""
    uniform = uniform_at(seed, task, "adapter", 0, rows * width).reshape(rows, width)
    return (2 * uniform - 1) / math.sqrt(width)


# --- files -----------------------------------------------------------------------------------------------------


def adapter_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter under the names that they have in its file; live ones."""
    return {name: tensor.detach() for name, tensor in adapter.state_dict(keep_vars=True).items()}


def write_adapter(path: Path, adapter: Adapter, *, overwrite: bool = False) -> None:
    """Writes an adapter; equal ones give equal bytes, and the file is the old one or the new one, whole.

    Raises BadNumber for NaN or infinity, BadOutput where the file exists (without `overwrite`) or cannot be written.
    """
    write_tensors(path, adapter_tensors(adapter), {"kind": "adapter"}, overwrite=overwrite)


def read_adapter(path: Path, width: int) -> Adapter:
    """The adapter in a file, in evaluation mode and frozen, on the CPU; its kind follows from the tensors' names.

    Raises Mismatch for one that is of another width than the features or no adapter, BadFile for one with NaN or
    infinity or that cannot be read.
    """
    with open_plain(path) as file:
        kind = _kind(file, width)
        tensors = {name: file.tensor(name) for name in file.specs}
        file.check_unchanged()
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise BadFile("the adapter holds NaN or infinity", where=f"{path}: `{name}`", hint=DAMAGED)
    return kind(**tensors).eval()


def _kind(file: Checkpoint, width: int) -> type[Adapter]:
    """What a file holds, by names, shapes and types, from its header alone. Raises Mismatch."""
    for kind, (reads, writes) in FORMS.items():
        if set(file.specs) == {reads, *writes}:
            _check_shapes(file, width, reads, writes)
            return kind
    forms = " or ".join(listed((reads, *writes)) for reads, writes in FORMS.values())
    what = f"an adapter of features has {forms}; this file has {listed(file.specs, 10, plain=True) or 'nothing'}"
    raise Mismatch(what, where=str(file.path), hint="is it a part of another kind?")


def _check_shapes(file: Checkpoint, width: int, reads: str, writes: tuple[str, ...]) -> None:
    inner = (*file.specs[reads].shape, 0)[0]
    wanted = {reads: (inner, width), **dict.fromkeys(writes, (width, inner))}
    for name, shape in wanted.items():
        spec, where = file.specs[name], f"{file.path}: `{name}`"
        if spec.shape != shape:
            what = f"an adapter {list(spec.shape)} for features of {width} numbers, expected {list(shape)}"
            raise Mismatch(what, where=where, hint="is it the adapter of another backbone?")
        if not is_float(spec.dtype):
            raise Mismatch("is not of a floating-point type", where=where, hint="write the adapter again")


# --- arithmetic ------------------------------------------------------------------------------------------------


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.float(), requires_grad=False)


def _across(features: Features, weight: Tensor) -> Tensor:
    """The weight [r, D] applied to the channels of [B, D, …]: [B, r, …]."""
    return functional.linear(features.movedim(1, -1), weight).movedim(-1, 1)
