"""Whether a checkpoint holds quantised weights: codes that mean nothing without the scales beside them, and what they
are as weights where that can be read.

Read from headers: the names that quantisers give codes and scales (public files and savers of each, 2023-2026), the
element types, and `quantization_config` in config.json. A name alone says nothing (`logit_scale` and LayerScale are
ordinary parameters): a companion counts only beside codes, in whose place or behind whose name it stands. Weights
stored as plain 8-bit floats, without scales, are numbers like any other.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.header import Scaling, TensorSpec
from taskmerge.checkpoint.scales import FP8, MARKER, with_scales
from taskmerge.documents import object_at, object_in, read_object
from taskmerge.errors import BadFile, listed

CONFIG = "config.json"
NARROW = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
"""Integers that codes are packed into."""
INTEGERS = NARROW | {"I64", "U64"}
EXPONENT = "F8_E8M0"
"""Powers of two: no weight is stored so, the scales of MX formats are."""
CONFIG_KEYS = ("quantization_config", "compression_config")

_ELSEWHERE = "without their scales (in another shard? then name the folder or its index)"
_ORIGINAL = "take the weights from before quantisation"
_LOAD = "`from_pretrained(PATH, quantization_config={}(dequantize=True)).save_pretrained(NEW)` with transformers"
_METHOD = "`model.dequantize()` and `model.save_pretrained(NEW)` with transformers"
_MULTIPLY = "multiply every weight by its scale, and save the products in bfloat16"
_FP8_CONFIG, _COMPRESSED = _LOAD.format("FineGrainedFP8Config"), _LOAD.format("CompressedTensorsConfig")
WAYS = {"fp8": _FP8_CONFIG, "compressed-tensors": _COMPRESSED, "bitsandbytes": _METHOD}
"""`quant_method` of a config.json -> how its users get plain weights, where names alone don't tell."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one scheme names its tensors: `companions` stand where `codes` stands at the end of the codes' name.

    `dtypes` are what codes are stored as (None: anything), `way` is how plain weights are got (None: none is known).
    """

    scheme: str
    codes: str
    companions: tuple[str, ...]
    dtypes: frozenset[str] | None
    way: str | None = None


_BITSANDBYTES = (".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
LAYOUTS = (
    Layout("bitsandbytes, 4 bits", "", _BITSANDBYTES, None, _METHOD),
    Layout("bitsandbytes, 8 bits", "weight", ("SCB",), NARROW, _METHOD),
    Layout("GPTQ or AWQ", "qweight", ("qzeros", "scales", "g_idx"), NARROW),
    Layout("HQQ", "W_q", ("scale", "zero", "meta", "nbits"), NARROW),
    Layout("quanto", "._data", ("._scale",), FP8 | NARROW),
    Layout("torchao", "qdata", ("scale",), FP8 | NARROW),
    Layout("compressed-tensors", "_packed", ("_scale", "_zero_point", "_shape", "_global_scale"), NARROW, _COMPRESSED),
    Layout("NVFP4", "", ("_scale_2",), FP8 | NARROW),
    Layout("MXFP4, as gpt-oss", "_blocks", ("_scales",), NARROW, _LOAD.format("Mxfp4Config")),
    Layout("FP8 in blocks, as DeepSeek", "", ("_scale_inv",), FP8 | NARROW, _FP8_CONFIG),
    Layout("scaled FP8 of ComfyUI", "weight", ("scale_weight", "comfy_quant"), FP8 | NARROW, _MULTIPLY),
    Layout("MLX", "weight", ("scales",), frozenset({"U32"}), "`mlx_lm.convert --dequantize`"),
    Layout("codes with scales", "", ("_scale", "_scales", "_scale_weight", "_zero_point"), FP8 | NARROW, _MULTIPLY),
    Layout("codes with scales", "weight", ("scale", "scales", "input_scale"), FP8 | NARROW, _MULTIPLY),
)
"""The more telling names first: several schemes call a scale `weight_scale`."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What a checkpoint is quantised with: `tensors` hold the codes, `evidence` is how that is known."""

    scheme: str
    tensors: tuple[str, ...]
    evidence: str
    way: str | None

    @property
    def what(self) -> str:
        """The scheme and its tensors, as one clause."""
        count = len(self.tensors)
        held = "1 tensor holds" if count == 1 else f"{count:,} tensors hold"
        return f"is quantised ({self.scheme}): {held} codes ({listed(self.tensors, 3)}), {self.evidence}"

    @property
    def hint(self) -> str:
        """How the weights come to be numbers again."""
        return f"dequantise first: {self.way}; or {_ORIGINAL}" if self.way else f"{_ORIGINAL}, or dequantise it first"


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint's tensors as weights: `specs`, with codes as the numbers that they stand for, which `note` says; or
    the tensors as they are stored, and what they are quantised with that cannot be read."""

    specs: Mapping[str, TensorSpec]
    quantised: Quantisation | None = None
    note: str | None = None


def as_weights(stored: Mapping[str, TensorSpec], config: Mapping[str, Any] | None = None) -> Weights:
    """What stored tensors are as weights: all of them can be read, or none is."""
    found = quantisation(stored, config)
    if found is None:
        return Weights(stored)
    specs, aside = with_scales(stored, config)
    lone = tuple(name for name, spec in specs.items() if spec.dtype in FP8)
    if len(specs) == len(stored):
        return Weights(stored, found)
    if (left := quantisation(specs, config)) is not None:
        return Weights(stored, left)
    if lone:
        return Weights(stored, replace(found, tensors=lone, evidence=f"unlike others {_ELSEWHERE}"))
    return Weights(specs, note=_dequantised(specs, aside))


def _dequantised(specs: Mapping[str, TensorSpec], aside: Sequence[str]) -> str:
    """What is done to read codes as weights, as one clause."""
    kinds = Counter(_over(spec.scaling) for spec in specs.values() if spec.scaling is not None)
    held = " and ".join(f"{count:,} with {kind}" for kind, count in sorted(kinds.items()))
    left = f"; {listed(aside, 2)} left out, no weights" if aside else ""
    return f"is dequantised while it is read: tensors of FP8 codes, {held}{left}"


def _over(scaling: Scaling) -> str:
    """What each scale is for."""
    height, width = scaling.block
    if scaling.scale.numel == 1:
        return "one scale"
    if height == 1 and width == scaling.columns:
        return "a scale for each row"
    return f"a scale for each block of {height} x {width}"


def quantisation(specs: Mapping[str, TensorSpec], config: Mapping[str, Any] | None = None) -> Quantisation | None:
    """What tensors of these names and types are quantised with; None for plain weights.

    `config` is the model's config.json. Its `quantization_config` counts only beside tensors that can be codes (FP8,
    integers like weights): people dequantise a model and leave the entry, and that model is plain (`config_warning`).
    """
    method = _configured(config)
    narrow = {spec.dtype for spec in specs.values()} & (FP8 | NARROW)
    for layout in LAYOUTS:
        pairs = dict(_pairs(layout, specs)) if narrow or layout.dtypes is None else {}
        if pairs:
            evidence = f"the first with `{next(iter(pairs.values()))}`"
            return Quantisation(layout.scheme, tuple(pairs), evidence, WAYS.get(method or "", layout.way))
    coded = tuple(name for name, spec in specs.items() if spec.dtype in FP8 or weights_like(name, spec))
    exponents = tuple(name for name, spec in specs.items() if spec.dtype == EXPONENT)
    if exponents:
        return Quantisation("MX", coded or exponents, f"and `{exponents[0]}` is {EXPONENT}, a scale", None)
    if MARKER in specs and coded:
        return Quantisation("scaled FP8 of ComfyUI", coded, f"as the tensor `{MARKER}` says", _MULTIPLY)
    if method is not None and coded:
        lone = f" {_ELSEWHERE}" if all(specs[name].dtype in FP8 for name in coded) else ""
        return Quantisation(method, coded, f"as config.json says{lone}", WAYS.get(method))
    return None


def config_warning(config: Mapping[str, Any] | None) -> str | None:
    """What is odd about a config.json that calls plain weights quantised: who loads them by it misreads them."""
    method = _configured(config)
    if method is None:
        return None
    return f"config.json says quantised ({method}), the tensors are plain: take `{CONFIG_KEYS[0]}` out of it"


def weights_like(name: str, spec: TensorSpec) -> bool:
    """Whether an integer tensor may be packed weights, of which no expert's can stand for the others'.

    So are matrices of integers below 64 bits, stacks of them, and whatever is called a weight; counters, position
    numbers and masks over heads (4-D) are not.
    """
    if spec.dtype not in INTEGERS:
        return False
    return "weight" in name.rpartition(".")[2] or (spec.dtype in NARROW and len(spec.shape) in (2, 3))


def read_config(folder: Path | None) -> Mapping[str, Any] | None:
    """The config.json of a folder; None where there is no folder, or none that can be read."""
    return None if folder is None else object_at(folder / CONFIG)


def unread_config(folder: Path | None) -> str | None:
    """What is wrong with the config.json of a folder, as one clause; None where it can be read, or is not there."""
    if folder is None or not os.path.lexists(folder / CONFIG):
        return None
    try:
        read_object(folder / CONFIG, constants=True)
    except BadFile as error:
        return f"{CONFIG} {error.what}: what it says of the model, and of its quantisation, is not known"
    return None


def _pairs(layout: Layout, specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, str]]:
    """(codes, a companion) for every tensor that a layout describes."""
    if not any(name.endswith(layout.companions) for name in specs):  # a model may have 100,000 tensors
        return
    for name, spec in specs.items():
        if not name.endswith(layout.codes) or (layout.dtypes is not None and spec.dtype not in layout.dtypes):
            continue
        owner = name.removesuffix(layout.codes)
        for companion in (owner + ending for ending in layout.companions):
            if companion in specs and not _cast_alike(spec, specs[companion]):
                yield name, companion
                break


def _cast_alike(codes: TensorSpec, companion: TensorSpec) -> bool:
    """Whether both were cast to one FP8 type, as a whole model may be: a scale is never stored as its codes are."""
    return codes.dtype in FP8 and codes.dtype == companion.dtype


def without_quantisation(raw: bytes) -> bytes | None:
    """A config.json without what it says of quantisation, which is not true of plain weights; None where nothing is."""
    config = object_in(raw)
    if config is None or _configured(config) is None:
        return None
    for part in _parts(config):
        for key in CONFIG_KEYS:
            part.pop(key, None)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _configured(config: Mapping[str, Any] | None) -> str | None:
    """The method that a config.json names, `quantization_config` if it names none; None where nothing is said."""
    for part in _parts(config or {}):
        for key in CONFIG_KEYS:
            entry = part.get(key)
            if isinstance(entry, dict) and entry:
                method = entry.get("quant_method")
                return method if isinstance(method, str) else key
    return None


def _parts(config: Mapping[str, Any]) -> list[Any]:
    """A configuration and those of the models in it, such as `text_config`."""
    return [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, dict))]
