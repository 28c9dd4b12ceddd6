"""Weights as FP8 codes with scales, in the layouts that are read, and what they stand for: taken element by element in
float64."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import CODES, DTYPES

Tensors = Mapping[str, Tensor]
TYPES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


@dataclass(frozen=True)
class Coded:
    """Codes, their scales, and the values in float64."""

    codes: Tensor
    scale: Tensor
    values: Tensor


def finite_codes(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random codes of every finite kind: zeros, subnormals, the largest."""
    every = torch.arange(256, dtype=torch.uint8)
    fine = every[every.view(DTYPES[dtype]).float().isfinite()]
    places = torch.randint(0, len(fine), (math.prod(shape),), generator=generator)
    return fine[places].view(DTYPES[dtype]).reshape(shape)


def scales(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random scales, no two alike where the type has room; powers of two for E8M0, as U8 too."""
    if dtype in ("F8_E8M0", "U8"):
        exponents = torch.randint(90, 150, shape, dtype=torch.uint8, generator=generator)
        return exponents if dtype == "U8" else exponents.view(DTYPES[dtype])
    return (0.01 + torch.rand(shape, generator=generator)).to(DTYPES[dtype])


def numbers(tensor: Tensor) -> Tensor:
    """What codes or scales are as numbers, in float64."""
    if tensor.dtype == torch.uint8:
        return torch.pow(torch.tensor(2.0, dtype=torch.float64), tensor.double() - 127)
    return tensor.float().double()


def in_blocks(codes: Tensor, scale: Tensor, block: tuple[int, int]) -> Coded:
    """Codes [..., rows, columns] with a scale for each block."""
    rows = torch.arange(codes.shape[-2]) // block[0]
    columns = torch.arange(codes.shape[-1]) // block[1]
    return Coded(codes, scale, numbers(codes) * numbers(scale)[..., rows[:, None], columns])


def broadcast(codes: Tensor, scale: Tensor) -> Coded:
    """Codes with one scale, or with one for each place of the leading axes."""
    spread = numbers(scale).reshape(scale.shape + (1,) * (codes.dim() - scale.dim()))
    return Coded(codes, scale, numbers(codes) * spread)


def quantised(weight: Tensor, block: tuple[int, int], dtype: str = "F8_E4M3", scale: str = "F32") -> Coded:
    """A matrix as a quantiser stores it: every block's largest magnitude is the type's largest, ragged edges too."""
    height, width = block
    grid = torch.empty(-(-weight.shape[0] // height), -(-weight.shape[1] // width))
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            part = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
            grid[i, j] = part.abs().max() / torch.finfo(DTYPES[dtype]).max
    if scale in ("F8_E8M0", "U8"):
        exponents = (grid.log2().ceil() + 127).to(torch.uint8)
        kept = exponents if scale == "U8" else exponents.view(DTYPES[scale])
    else:
        kept = grid.to(DTYPES[scale])
    divisor = numbers(kept)[torch.arange(weight.shape[0])[:, None] // height, torch.arange(weight.shape[1]) // width]
    return in_blocks((weight / divisor).float().to(DTYPES[dtype]), kept, block)


def stored(
    plain: Tensors, block: tuple[int, int] = (4, 4), ending: str = "_scale_inv", **types: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model with its matrices as codes, and the same model dequantised to float32; the rest is as it was."""
    coded = {name: quantised(value, block, **types) for name, value in plain.items() if value.dim() == 2}
    rest = {name: value for name, value in plain.items() if name not in coded}
    codes = {name: one.codes for name, one in coded.items()}
    return (
        {**rest, **codes, **{name + ending: one.scale for name, one in coded.items()}},
        {**rest, **{name: one.values.float() for name, one in coded.items()}},
    )


def type_of(tensor: Tensor) -> str:
    """The safetensors code of a tensor's type."""
    return CODES[tensor.dtype]
