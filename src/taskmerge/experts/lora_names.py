"""What tools call LoRA factors in files of their own: kohya, diffusers, ComfyUI and peft, by names alone."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from taskmerge.checkpoint.header import LENGTH_BYTES, MAX_HEADER, read_header
from taskmerge.checkpoint.held import Held, Place
from taskmerge.documents import open_regular
from taskmerge.errors import BadFile

Side = Literal["A", "B"]
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE = re.compile(r"(model|open_clip_model|pytorch_model|consolidated.*)(\.safetensors|\.bin)(\.index\.json)?")
"""The files of a whole model, beside which those of an adapter may have been left."""

_SIDES: dict[str, Side] = {"A": "A", "B": "B", "down": "A", "up": "B"}
_FACTORS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<module>.+)\.processor\.(?P<leaf>to_q|to_k|to_v|to_out)_lora\.(?P<side>down|up)\.weight",
        r"(?P<module>.+)\.(lora|lora_linear_layer)\.(?P<side>down|up)\.weight",
        r"(?P<module>.+)\.lora_(?P<side>down|up)\.weight",
        r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight",
    )
)
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_TABLE = re.compile(r".+\.lora_embedding_[AB](\.[^.]+)?")
_OTHER = re.compile(
    r".+\.(hada_[wt]\d\w*|lokr_[wt]\d\w*|dora_scale|lora_mid\.weight|lora_magnitude_vector.*|lora_[AB](\.[^.]+)?\.bias|"
    r"(a1|a2|b1|b2)\.weight|oft_\w+|diff|diff_b|glora\w*|ia3_\w+)"
)
"""What belongs to other kinds of adapters, or changes weights by more than B A."""


class Factor(NamedTuple):
    """Which factor of which module a tensor is."""

    module: str
    side: Side


def factor(name: str) -> Factor | None:
    """The factor that a tensor of this name is; None for any other."""
    for pattern in _FACTORS:
        match = pattern.fullmatch(name)
        if match:
            leaf = match.groupdict().get("leaf")
            inner = f".{leaf}.0" if leaf == "to_out" else f".{leaf}" if leaf else ""
            return Factor(match["module"] + inner, _SIDES[match["side"]])
    return None


def alpha_of(name: str) -> str | None:
    """The module whose alpha a tensor of this name is."""
    match = _ALPHA.fullmatch(name)
    return match["module"] if match else None


def other_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter that is not plain LoRA."""
    return _OTHER.fullmatch(name) is not None


def factors_among(names: Iterable[str]) -> list[str]:
    """The names of factors, and of what other adapters hold beside them, in pairs or not."""
    return [name for name in names if factor(name) or _TABLE.fullmatch(name) or other_adapter(name)]


def only_factors(names: Collection[str]) -> bool:
    """Whether these are the tensors of an adapter, and of nothing else."""
    found = {name for name in names if factor(name) or _TABLE.fullmatch(name)}
    return bool(found) and all(name in found or alpha_of(name) or other_adapter(name) for name in names)


# --- what a path is --------------------------------------------------------------------------------------------


def is_adapter(place: Place) -> bool:
    """Whether a path is an adapter: peft's folder, the weight file in it, or a file (or state dict) of nothing but
    factors.

    A folder that has a whole model's weights too is one if it has both files of an adapter (`beside` says what is left
    aside). False where nobody may look.
    """
    if isinstance(place, Held):
        return only_factors([name for name in place.tensors if isinstance(name, str)])
    return _is_adapter(place)


def _is_adapter(path: Path) -> bool:
    if os.path.isdir(path):
        own = adapter_files(path)
        if own:
            return len(own) > 1 or not whole_files(path)
        lone = [path / name for name in _visible(path) if name.endswith(".safetensors")]
        return len(lone) == 1 and _holds_factors(lone[0])
    return path.name in WEIGHTS or (path.name.endswith(".safetensors") and _holds_factors(path))


def adapter_files(folder: Path) -> list[str]:
    """Those of peft's files that a folder has: configuration, weights."""
    weights = [name for name in WEIGHTS if os.path.isfile(folder / name)][:1]
    return [*([CONFIG] if os.path.isfile(folder / CONFIG) else []), *weights]


def whole_files(folder: Path) -> list[str]:
    """The files of a whole model in a folder."""
    return [name for name in _visible(folder) if WHOLE.fullmatch(name)]


def beside(path: Path, *, adapter: bool) -> str | None:
    """What was taken of a folder that has both a whole model's files and an adapter's, the adapter or not; None where
    there is nothing to choose."""
    own, whole = (adapter_files(path), whole_files(path)) if os.path.isdir(path) else ([], [])
    if not own or not whole:
        return None
    taken, left = ("the adapter", whole) if adapter else ("the whole model", own)
    said = f"{taken} is taken, {', '.join(left[:3])} left aside (name a file to choose)"
    return f"{path} holds a whole model and an adapter's files: {said}"


def _visible(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _holds_factors(path: Path) -> bool:
    """Whether a safetensors file holds nothing but factors, by its header; False where that cannot be read."""
    try:
        with open(open_regular(path), "rb") as file:
            size = int.from_bytes(file.read(LENGTH_BYTES), "little")
            raw = file.read(min(size, MAX_HEADER))
        if b"lora" not in raw and b".hada_" not in raw and b".lokr_" not in raw:
            return False
        return only_factors(read_header(path).specs)
    except (OSError, BadFile):
        return False
