"""What a model's configuration may ask for: checked before anything is built of it, as anybody may have written it.

A library that is told of ten million layers sets out to make them, and divides by a patch of no pixels.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.errors import BadFile, NotEnough
from taskmerge.numerics.memory import machine_memory

HINT = "check it against the configuration that its publisher has"
LAYERS = frozenset({
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "layers", "depth", "depths", "num_blocks",
})  # fmt: skip
SIZES = frozenset({
    "hidden_size", "hidden_sizes", "intermediate_size", "vocab_size", "patch_size", "image_size", "num_channels",
    "embed_dim", "embed_dims", "embedding_size", "width", "head_width", "heads", "num_attention_heads", "num_heads",
    "n_head", "n_heads", "n_embd", "d_model", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
    "encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads", "head_dim", "projection_dim",
    "context_length", "n_positions", "n_ctx",
})  # fmt: skip
"""Numbers, or lists of them, that mean nothing below 1."""
MOST_LAYERS, USUAL_LAYERS = 1_000, 200
"""What no model has, and what hardly any has: more are believed where the weights beside them have as many."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
LONG = frozenset({"vocab_size", "context_length", "n_positions", "n_ctx"})
LARGEST_SIZE, LARGEST_LENGTH = 1 << 18, 1 << 24
"""Of one dimension, and of those that are long: the largest context has ten million tokens."""


def check_sizes(document: Mapping[str, Any], where: str) -> None:
    """Raises `BadFile` for a configuration with a number of layers, or a size of something, that no model has."""
    for key, value in entries(document):
        if isinstance(value, dict) or value is None or key not in LAYERS | SIZES:
            continue
        largest = MOST_LAYERS if key in LAYERS else LARGEST_LENGTH if key in LONG else LARGEST_SIZE
        sizes = list(_flat(value))
        if not sizes or not all(type(size) is int and 1 <= size <= largest for size in sizes):
            what = f"`{key}` is a whole number from 1 to {largest:,}, or a list of them, not {str(value)[:80]}"
            raise BadFile(what, where=where, hint=HINT)


def check_layers(document: Mapping[str, Any], folder: Path, where: str) -> None:
    """Raises `BadFile` for a configuration with more layers than the weights in its folder, if these are many."""
    said = [size for key, value in entries(document) if key in LAYERS for size in _flat(value) if type(size) is int]
    if max(said, default=0) <= USUAL_LAYERS:
        return
    try:
        with open_checkpoint(folder) as checkpoint:
            numbers = [int(number) for name in checkpoint.specs for number in NUMBER.findall(name)]
    except BadFile:
        return
    if max(said) > (there := max(numbers, default=-1) + 1):
        raise BadFile(f"says {max(said):,} layers, the weights beside it have {there:,}", where=where, hint=HINT)


def check_fits(make: Callable[[], nn.Module], where: str) -> None:
    """Raises `NotEnough` for a model that this machine has no memory for: `make` builds it without storage first."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = make()
        needed = sum(one.numel() * 4 for one in (*model.parameters(), *model.buffers()))
    except Exception:  # whoever builds it with storage says what is wrong
        return
    if needed > machine_memory():
        what = f"describes a model of {needed / 1e9:,.3g} GB, more than this machine has memory"
        raise NotEnough(what, where=where, hint=f"use a machine with more memory, or {HINT}")


def triple(document: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float]:
    """Three finite numbers, one a channel; deviations (`std` in the key) are not zero."""
    value = document.get(key)
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(_is_number(one) and ("std" not in key or one > 0) for one in numbers):
        what = f"`{key}` is a list of three numbers, one a channel, not {str(value)[:80]}"
        raise BadFile(what, where=where, hint=HINT)
    return cast("tuple[float, float, float]", tuple(float(one) for one in numbers))


def square(value: object, where: str) -> tuple[int, int]:
    """Height and width of a model's pictures: one number, or two."""
    sizes = list(_flat(value))
    if len(sizes) not in (1, 2) or not all(type(size) is int and 1 <= size <= LARGEST_SIZE for size in sizes):
        what = f"`image_size` is a whole number from 1 on, or two of them, not {str(value)[:80]}"
        raise BadFile(what, where=where, hint=HINT)
    return sizes[0], sizes[-1]


def unbuildable(error: Exception, library: str, where: str | Path) -> BadFile:
    """The error for a configuration of which a library builds nothing, whatever it raises then."""
    said = str(error).strip() or type(error).__name__
    return BadFile(f"is no configuration of {library}: {said}", where=str(where), hint="check `backbone: model`")


def entries(document: object) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield key, value
            yield from entries(value)
    elif isinstance(document, list):
        for value in document:
            yield from entries(value)


def _flat(value: object) -> Iterator[Any]:
    if not isinstance(value, list | tuple):
        yield value
        return
    for inner in value:
        yield from _flat(inner)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
