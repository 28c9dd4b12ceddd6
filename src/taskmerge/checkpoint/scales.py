"""Which scale belongs to which FP8 codes, and how its values lie over them: from headers and config.json alone.

Read are the layouts in which a value is code x scale and nothing else: blocks (DeepSeek, `weight_scale_inv`), one scale
a tensor, a row or a matrix of a stack (compressed-tensors, FBGEMM, ModelOpt: `weight_scale`; ComfyUI: `scale_weight`),
MXFP8. Scales are floating-point numbers, or powers of two (F8_E8M0, or its bytes as U8).
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskmerge.checkpoint.dtypes import is_float, itemsize
from taskmerge.checkpoint.header import Scaling, TensorSpec

FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
SCALE_TYPES = frozenset({"F32", "BF16", "F16", "F8_E8M0", "U8"})
MARKER = "scaled_fp8"
"""The name of an empty tensor with which ComfyUI says that the file's FP8 tensors have scales."""
COMFY = "comfy_quant"
"""The name of ComfyUI's description of one layer's codes, which also stands beside layouts that are not read."""

_BEHIND = ("_scale_inv", "_scale")  # behind the codes' name
_INSTEAD = ("scale_weight",)  # in the place of `weight`
_FURTHER = ("_zero_point", "_scale_2", "_global_scale", "_shape", "_g_idx", "_scales", "_scale_weight")
"""Companions, behind the codes' name, with which a value is more than code x scale."""
_OF_ACTIVATIONS = frozenset({
    "input_scale", "input_scale_ub", "input_scale_inv", "input_activation_scale", "activation_scale",
    "activation_scale_inv", "output_scale", "scale_input", "act_scale", "k_scale", "v_scale", "q_scale", "prob_scale",
    "kv_scale",
})  # fmt: skip
"""What activations are quantised by while the model runs: no part of its weights."""


def with_scales(
    specs: Mapping[str, TensorSpec], config: Mapping[str, Any] | None
) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """The tensors as weights: codes whose scale is known are F32 with their `scaling`, everything else stays as it is.

    Also the names of what is left out, as it says something about codes or activations alone.
    """
    blocks = list(_configured_blocks(config or {}))
    scaled = {name: spec for name, spec in specs.items() if spec.dtype in FP8}
    pairs = {name: specs[scale] for name in scaled if (scale := _scale_of(name, specs)) is not None}
    weights = {name: one for name, scale in pairs.items() if (one := _weight(scaled[name], scale, blocks)) is not None}
    if not weights:
        return dict(specs), ()
    modules = {name.rpartition(".")[0] for name in weights}
    modules |= {module.rpartition(".")[0] for module in modules}  # attention around its projections
    aside = tuple(name for name, spec in specs.items() if name not in weights and _aside(spec, modules))
    gone = {pairs[name].name for name in weights}.union(aside)
    return {name: weights.get(name, spec) for name, spec in specs.items() if name not in gone}, aside


def _scale_of(name: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """The one scale of some codes, by its name; None where there is none, several, or more than a scale."""
    owner, _, last = name.rpartition(".")
    front = f"{owner}." if owner else ""
    behind = [name + ending for ending in _BEHIND]
    instead = [front + ending for ending in _INSTEAD] if last == "weight" else []
    scales = [scale for scale in (*behind, *instead) if scale in specs]
    if len(scales) != 1 or any(name + ending in specs for ending in _FURTHER):
        return None
    if front + COMFY in specs and specs[scales[0]].numel != 1:
        return None  # its other layouts have their scales in another order
    return scales[0] if specs[scales[0]].dtype in SCALE_TYPES else None


def _aside(spec: TensorSpec, modules: Container[str]) -> bool:
    """Whether a tensor says something about codes or activations alone."""
    owner, _, last = spec.name.rpartition(".")
    if last == MARKER:
        return spec.numel <= 2
    if last == COMFY:
        return owner in modules and spec.dtype == "U8"
    return last in _OF_ACTIVATIONS and owner in modules and spec.numel == 1 and is_float(spec.dtype)


def _weight(codes: TensorSpec, scale: TensorSpec, blocks: Sequence[tuple[int, int]]) -> TensorSpec | None:
    """The weights that codes stand for; None where the scale's shape fits no layout."""
    laid = _laid(codes.shape, scale.shape, blocks)
    if laid is None:
        return None
    return replace(codes, dtype="F32", nbytes=codes.numel * itemsize("F32"), scaling=Scaling(codes, scale, *laid))


def _laid(
    shape: tuple[int, ...], grid: tuple[int, ...], blocks: Sequence[tuple[int, int]]
) -> tuple[int, int, tuple[int, int]] | None:
    """(rows, columns, block) of the matrices with which a grid of scales lies over codes; None where it does not.

    A grid of fewer axes than the codes has one value for each row (or matrix), never a guess.
    """
    numel = math.prod(shape)
    if math.prod(grid) == 1:
        return 1, max(numel, 1), (1, max(numel, 1))
    if not numel or len(grid) > len(shape):
        return None
    axes = len(grid)
    grid = grid + (1,) * (len(shape) - axes)
    own = 0  # leading axes of which every place has scales of its own
    while own < len(shape) and grid[own] == shape[own]:
        own += 1
    if all(side == 1 for side in grid[own:]):  # whole slices: rows, or matrices of a stack
        return math.prod(shape[:own]), math.prod(shape[own:]), (1, math.prod(shape[own:]))
    if axes < len(shape) or axes < 2 or grid[:-2] != shape[:-2]:
        return None
    block = _block(shape[-2:], grid[-2:], blocks)
    return None if block is None else (shape[-2], shape[-1], block)


def _block(shape: tuple[int, ...], grid: tuple[int, ...], blocks: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The size of blocks of which `grid` lie over a matrix: the configuration's, else powers of two, as all are.

    With ragged edges a grid alone leaves several sizes open, of which at most one is a power of two.
    """
    for height, width in blocks:
        if grid == (-(-shape[0] // height), -(-shape[1] // width)):
            return height, width
    height, width = (_power(side, count) for side, count in zip(shape, grid, strict=True))
    return (height, width) if height and width else None


def _power(side: int, count: int) -> int:
    """The power of two by which a side falls into so many blocks; the side itself for one block, 0 for none."""
    if count == 1:
        return side
    size = 1 << max(0, math.ceil(math.log2(side / count))) if count else 0
    return size if size and -(-side // size) == count else 0


def _configured_blocks(config: Mapping[str, Any], depth: int = 6) -> Iterator[tuple[int, int]]:
    """The sizes of blocks that a configuration names, wherever in it."""
    for key, value in config.items():
        if isinstance(value, Mapping) and depth:
            yield from _configured_blocks(value, depth - 1)
        elif key in ("weight_block_size", "block_structure") and isinstance(value, list) and len(value) == 2:
            height, width = value
            if type(height) is int and type(width) is int and min(height, width) > 0:
                yield height, width
