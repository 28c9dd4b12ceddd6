"""One model under several names: what each tensor of a file is called in all dialects alike, its key.

Names and the model's type decide, never shapes. A dialect is what wrappers put inside names (`_orig_mod.`), LayerNorm's
`gamma` and `beta`, the prefixes of vision-language models before and after transformers 4.52, and a mixture's experts
one by one or stacked (transformers 5). Keys are for comparing inputs alone: nothing is written under them.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskmerge.checkpoint.header import TensorSpec

WRAPPERS = frozenset({
    "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "module",
})  # fmt: skip
"""Segments of names that torch.compile, activation checkpointing, FSDP, Lightning and DataParallel put in."""

_NORM = re.compile(r"(norm|(^|[._])ln(_?\w+)?)$", re.IGNORECASE)
_AFFINE = {"gamma": "weight", "beta": "bias"}

_TEXT = r"(language_model|text_model)"
_HEAD = re.compile(rf"^(?:model\.)?{_TEXT}\.lm_head\.")
_TOWER = re.compile(rf"^(?:model\.)?{_TEXT}\.(?:model\.)?")
_BESIDE = re.compile(
    r"^model\.(?=(vision_tower|vision_model|visual|audio_tower|image_tower|video_tower|multi_modal_projector|"
    r"image_newline|vision_embed_tokens|vqmodel)(\.|$))"
)
_UNNAMED_TEXT = re.compile(r"^model\.(?=(layers|embed_tokens|norm|rotary_emb)\.)")
_VISUAL = re.compile(r"^(model\.)?visual\.")

_LONE = re.compile(r"(?P<front>.*\bexperts)\.(?P<number>\d+)\.(?P<part>w[123])\.(?P<rest>[^.]+)")
_LETTERS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_STACK = re.compile(r"(?P<front>.*\bexperts)\.(?P<part>gate_up_proj|gate_proj|up_proj|down_proj)")
_HALVES = {"gate_up_proj": ("gate_proj", "up_proj")}
_GRANITE = (
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
    ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
)
SIDEWAYS = ("llama4", "gpt_oss", "qwen3_vl_moe", "dbrx")
"""Model types (or what they begin with) whose stacks lie [E, in, out], or gate and up in turns: left alone."""

Rename = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a stored tensor's elements that has a key of its own: `shape` of them from `start` on."""

    key: str
    start: int
    shape: tuple[int, ...]


def unwrapped(name: str) -> str:
    """A name without what wrappers put into it."""
    segments = name.split(".")
    return ".".join([segment for segment in segments[:-1] if segment not in WRAPPERS] + segments[-1:])


def plain(name: str) -> str:
    """A name without wrappers, and with LayerNorm's parameters as torch calls them."""
    bare = unwrapped(name)
    module, _, last = bare.rpartition(".")
    return f"{module}.{_AFFINE[last]}" if last in _AFFINE and _NORM.search(module.rpartition(".")[2]) else bare


def shows_vision(names: Iterable[str]) -> bool:
    """Whether these are Qwen-VL's: there `model.layers` is what others call `language_model.layers`."""
    return any(_VISUAL.match(unwrapped(name)) for name in names)


def key_of(name: str, *, vision: bool = False, further: Rename | None = None) -> str:
    """What a tensor is called in all dialects alike. `vision` says that `model.` holds the text tower of a model with
    another one (`shows_vision`); `further` is the renaming of a library."""
    bare = plain(name)
    bare = further(bare) if further else bare
    bare = _TOWER.sub(r"\1.", _HEAD.sub("lm_head.", bare))
    bare = _BESIDE.sub("", bare)
    bare = _UNNAMED_TEXT.sub("language_model.", bare) if vision else bare
    for old, new in _GRANITE:
        bare = bare.replace(old, new)
    lone = _LONE.fullmatch(bare)
    bare = f"{lone['front']}.{lone['number']}.{_LETTERS[lone['part']]}.{lone['rest']}" if lone else bare
    return bare.replace(".block_sparse_moe.", ".mlp.")


def keys_of(names: Collection[str], *, vision: bool = False, further: Rename | None = None) -> dict[str, str]:
    """name -> key, for all names of one file; names that would have one key are their own."""
    keys = {name: key_of(name, vision=vision, further=further) for name in names}
    counts = Counter(keys.values())
    return {name: key if counts[key] == 1 else name for name, key in keys.items()}


def pieces_of(
    specs: Mapping[str, TensorSpec], keys: Mapping[str, str], config: Mapping[str, Any] | None = None
) -> dict[str, tuple[Piece, ...]]:
    """The pieces of every tensor of a file, by name: stacks of experts [E, out, in] are taken apart into what each
    expert's own tensors would be (`experts.3.gate_proj.weight`), all others are one piece.

    Not taken apart are stacks of models that are known to lay them otherwise (`SIDEWAYS`, or with biases beside them).
    """
    whole = sideways(config)
    biased = {key.removesuffix("_bias") for key in keys.values() if key.endswith("_proj_bias")}
    found = {}
    for name, spec in specs.items():
        key = keys[name]
        stack = None if whole or key in biased else _STACK.fullmatch(key)
        found[name] = (stack and _apart(stack, spec.shape)) or (Piece(key, 0, spec.shape),)
    return found


def sideways(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is of a model whose stacks of experts lie in a way of their own."""
    return any(kind.startswith(SIDEWAYS) for kind in model_types(config))


def model_types(config: Mapping[str, Any] | None) -> list[str]:
    """The model types that a config.json names, its own first, then those of its parts."""
    own = config or {}
    parts = [own, *(part for _, part in sorted(own.items()) if isinstance(part, dict))]
    return list(dict.fromkeys(kind for part in parts if isinstance(kind := part.get("model_type"), str)))


def _apart(stack: re.Match[str], shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """The pieces of a stack: expert by expert, gate before up."""
    parts = _HALVES.get(stack["part"], (stack["part"],))
    if len(shape) != 3 or shape[1] % len(parts):
        return ()
    rows, columns = shape[1] // len(parts), shape[2]
    keys = [f"{stack['front']}.{expert}.{part}.weight" for expert in range(shape[0]) for part in parts]
    return tuple(Piece(key, place * rows * columns, (rows, columns)) for place, key in enumerate(keys))
