"""The element types that safetensors and torch share, under their safetensors codes; a tensor's bytes."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

_SHARED = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")  # below a byte: torch has no element of these types

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {code: getattr(torch, name) for code, name in _SHARED.items() if hasattr(torch, name)}
)
"""safetensors code -> torch dtype, in the order in which the format lays tensors out (widest alignment first)."""

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(_PACKED, "its weights are quantised: take those from before quantisation")
    | {code: f"a newer torch reads it (this is {torch.__version__})" for code in _SHARED if code not in DTYPES}
)
"""Codes of the format that cannot be read here -> what to do about it."""

CODES: Mapping[torch.dtype, str] = MappingProxyType({dtype: code for code, dtype in DTYPES.items()})
"""torch dtype -> safetensors code."""

LAYOUT_ORDER: Mapping[str, int] = MappingProxyType({code: place for place, code in enumerate(_SHARED)})
"""Place of each code in the order of a written file."""


def itemsize(code: str) -> int:
    """Bytes of one element."""
    return DTYPES[code].itemsize


def is_float(code: str) -> bool:
    """Whether the type is a real floating-point type (F64 ... F8)."""
    return DTYPES[code].is_floating_point


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in C order, without a copy; writing to them writes to the tensor."""
    flat = tensor.detach().reshape(-1)
    flat = flat.as_strided((1,), (1,)) if len(flat) == 1 else flat  # one element counts as contiguous at any stride
    return flat.view(torch.uint8).numpy().data
