"""What a state dict may hold: plain tensors by name, of types that safetensors has too."""

from collections.abc import Mapping

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import CODES
from taskmerge.checkpoint.header import MAX_DIMENSIONS
from taskmerge.errors import BadFile, Mismatch, TaskmergeError

PLAIN = (Tensor, torch.nn.Parameter)
HOLDERS = ("state_dict", "model_state_dict", "model", "module")
"""What trainers call the state dict in files that hold more: Lightning, loops by hand, torch's own tools, DeepSpeed."""


def plain_tensors(loaded: object, where: str, hint: str) -> dict[str, Tensor]:
    """The tensors of a state dict: of itself, or of one of its entries `HOLDERS`. None of them is copied.

    `where` is what holds it, `hint` says how to come by a state dict. Raises BadFile for what is none, and for tensors
    without values or in another form than one block of them; Mismatch for codes, and for parts of a tensor.
    """
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in HOLDERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        what = f"holds a {type(loaded).__name__}, not a state dict"
        raise BadFile(what, where=where, hint="save the model's state_dict()")
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise BadFile(f"the key {name!r} is not text", where=where, hint=hint)
        if not isinstance(value, Tensor):
            raise BadFile(f"is a {type(value).__name__}, not a tensor", where=f"{where}: `{name}`", hint=hint)
        if (refusal := _refusal(value, f"{where}: `{name}`")) is not None:
            raise refusal
    return {name: value.detach().resolve_conj().resolve_neg() for name, value in loaded.items()}


def _refusal(value: Tensor, where: str) -> TaskmergeError | None:
    """Why a tensor cannot be read number by number; None where it can."""
    if value.is_nested:
        return BadFile("is a nested tensor", where=where, hint="give its parts, each under a name of its own")
    if type(value) not in PLAIN:
        hint = "`.full_tensor()` gathers a DTensor, `.dequantize()` makes numbers of codes"
        return Mismatch(f"is a {type(value).__name__}, not a plain tensor", where=where, hint=hint)
    if value.is_quantized:
        hint = "take the weights from before quantisation, or their `.dequantize()`"
        return Mismatch(f"is quantised ({str(value.dtype).removeprefix('torch.')})", where=where, hint=hint)
    if value.layout != torch.strided:
        return BadFile("is a sparse tensor", where=where, hint="store it densely: `.to_dense()`")
    if value.is_meta:
        return BadFile("has no values: it is on the meta device", where=where, hint="load the model's weights first")
    if value.dim() > MAX_DIMENSIONS:
        what = f"has {value.dim()} dimensions, more than {MAX_DIMENSIONS}"
        return BadFile(what, where=where, hint="give it a shape that safetensors takes")
    if value.dtype not in CODES:
        hint = "cast it before saving"
        return BadFile(f"has dtype {value.dtype}, which safetensors lacks", where=where, hint=hint)
    return None
