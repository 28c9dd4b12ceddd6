"""What kind of tensor a name and a shape stand for, and which depth it has: from role and shape alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taskmerge.types import TensorClass

# Words (whole, between dots and underscores) that mark a look-up table; the last three only outside blocks, where
# they don't name matrices that act on positions (DeBERTa's `layer.0.attention.self.pos_proj.weight`).
TABLE_WORDS = frozenset({"embed", "embedding", "embeddings", "wte", "wpe", "relative", "table"})
PLACE_WORDS = frozenset({"position", "positional", "pos"})
CLASSES: tuple[TensorClass, ...] = ("linear", "stack", "projection", "embedding", "conv", "vector", "scalar", "buffer")
STACKS = frozenset({"experts", "moe", "block_sparse_moe"})
"""Modules of mixtures of experts that hold the experts' tensors stacked: `experts.gate_up_proj` [E, 2I, H]."""

STAGE = re.compile(r"(.*[^\d.])(\d+)")
"""A stage among others beside it: the name that they share, and its number."""


@dataclass(frozen=True, slots=True)
class Block:
    """The numbered block of a tensor: the name of its tower (`visual.transformer.resblocks`) and its index."""

    tower: str
    index: int


def block_of(name: str) -> Block | None:
    """The first numbered segment that holds modules (`layers.3.mlp.0.weight` is block 3 of `layers`).

    A number directly above a parameter (`classifier.0.weight`) numbers a module, not a block.
    """
    segments = name.split(".")
    for place, segment in enumerate(segments):
        if segment.isdigit() and place and len(segments) - place > 2:
            return Block(".".join(segments[:place]), int(segment))
    return None


def classify(name: str, shape: tuple[int, ...], floating: bool) -> TensorClass:
    """The class of a tensor: `linear` matrices of blocks, `stack` for the matrices of a block's experts, one behind the
    other, `projection` matrices outside blocks, `embedding` tables, `conv` kernels of three and more axes, `vector`
    (the experts' biases too), `scalar`, and `buffer` for integers and bools."""
    if not floating:
        return "buffer"
    if not shape:
        return "scalar"
    if sum(side > 1 for side in shape) <= 1:
        return "vector"
    if _is_stacked(name):
        if len(shape) == 3:
            return "stack"
        if len(shape) == 2 and name.endswith("bias"):
            return "vector"
    inside = block_of(name) is not None
    tables = TABLE_WORDS if inside else TABLE_WORDS | PLACE_WORDS
    if len(shape) <= 3 and not tables.isdisjoint(_words(name)):
        return "embedding"
    if len(shape) > 2:
        return "conv"
    return "linear" if inside else "projection"


def _is_stacked(name: str) -> bool:
    """Whether a parameter of a block belongs to all experts of a mixture at once: none of them is numbered."""
    segments = name.split(".")
    inside = next((place for place, segment in enumerate(segments[:-1]) if segment in STACKS), None)
    return inside is not None and block_of(name) is not None and not any(map(str.isdigit, segments[inside:]))


def _words(name: str) -> set[str]:
    """The words of the module that owns a parameter, and of the parameter itself."""
    return {word for segment in name.split(".")[-2:] for word in segment.split("_")}


def depths(names: Iterable[str]) -> dict[str, int]:
    """The number of blocks of every tower."""
    counts: dict[str, int] = {}
    for name in names:
        block = block_of(name)
        if block:
            counts[block.tower] = max(counts.get(block.tower, 0), block.index + 1)
    return counts


def position(name: str, towers: Mapping[str, int]) -> tuple[int, int] | None:
    """(index of the block, number of blocks) of a tensor, or None outside blocks."""
    block = block_of(name)
    return (block.index, towers[block.tower]) if block else None


def in_sequence(towers: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Tower -> (blocks before its first one, blocks in all), of towers and their numbers of blocks (`depths`).

    Stages, such as ResNets' `layer1`, `layer2` ..., are one sequence.
    """
    stems: dict[str, list[tuple[int, str]]] = {}
    for tower in towers:
        stage = STAGE.fullmatch(tower)
        stems.setdefault(stage[1] if stage else f"{tower}.", []).append((int(stage[2]) if stage else 0, tower))
    found = {}
    for stages in stems.values():
        total = sum(towers[tower] for _, tower in stages)
        before = 0
        for _, tower in sorted(stages):
            found[tower] = before, total
            before += towers[tower]
    return found


# --- attention projections -------------------------------------------------------------------------------------

SPLIT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
)
FUSED = re.compile(r"(^|\.)(in_proj_weight|in_proj_bias|(c_attn|qkv)\.(weight|bias))$")
TRANSPOSED = re.compile(r"(^|\.)c_attn\.weight$")  # GPT-2's Conv1D holds [in, out]: q, k, v lie side by side


@dataclass(frozen=True, slots=True)
class Attention:
    """How q, k and v of one block lie in a file: `parts` are three tensors, or one that holds all along `axis`."""

    parts: tuple[str, ...]
    axis: int


def attention_groups(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Attention]:
    """For every attention projection's tensor name the group it belongs to."""
    groups: dict[str, Attention] = {}
    for name, shape in shapes.items():
        if FUSED.search(name):
            axis = 1 if TRANSPOSED.search(name) else 0
            if shape[axis] % 3 == 0:
                groups[name] = Attention((name,), axis)
            continue
        parts = _siblings(name)
        if parts and all(part in shapes and shapes[part][1:] == shape[1:] for part in parts):
            groups[name] = Attention(parts, 0)
    return groups


def _siblings(name: str) -> tuple[str, ...] | None:
    """The q, k, v names of a split projection."""
    segments = name.split(".")
    for trio in SPLIT:
        if len(segments) > 1 and segments[-2] in trio:
            return tuple(".".join([*segments[:-2], part, segments[-1]]) for part in trio)
    return None
