"""How transformers renames and splits a model type's tensors when it loads older files: its own tables, if any.

Asked only where names differ beyond what `dialects` knows: the library takes seconds to import. No model is built.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from taskmerge.checkpoint.dialects import Piece, model_types


@dataclass(frozen=True)
class Conversions:
    """A model type's tables: `renames` act one after the other, `splits` are pairs of a tensor (the end of its name)
    and the equal parts, one below the other, that newer versions keep for it."""

    renames: tuple[Any, ...]
    splits: tuple[tuple[str, tuple[str, ...]], ...]

    def rename(self, name: str) -> str:
        """The newest name of a tensor."""
        for step in self.renames:
            name = step.rename_source_key(name)[0]
        return name

    def apart(self, key: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The pieces of a tensor that newer versions keep in several; nothing for any other."""
        for end, parts in self.splits:
            if key.endswith(end) and shape and shape[0] % len(parts) == 0:
                rows = (shape[0] // len(parts), *shape[1:])
                count = rows[0] * math.prod(shape[1:])
                front = key.removesuffix(end)
                return tuple(Piece(front + part, place * count, rows) for place, part in enumerate(parts))
        return ()


def conversions_for(config: Mapping[str, Any] | None) -> Conversions | None:
    """The tables for the model that a config.json describes; None where the library has none (before version 5)."""
    named = (config or {}).get("architectures")
    classes = tuple(one for one in named if isinstance(one, str)) if isinstance(named, list) else ()
    types = tuple(model_types(config))
    return _tables(classes, types) if classes or types else None


@cache
def _tables(classes: tuple[str, ...], types: tuple[str, ...]) -> Conversions | None:
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    except ImportError:
        return None
    bare = [name for kind in types if isinstance(name := MODEL_MAPPING_NAMES.get(kind), str)]
    renames: list[Any] = []
    splits: list[tuple[str, tuple[str, ...]]] = []
    own = (*classes, *types[:1])
    for name in dict.fromkeys((*own, *bare, *types)):
        for step in get_checkpoint_conversion_mapping(name) or ():  # type: ignore[no-untyped-call]  # transformers' has no types
            inner = name not in own and any("^" in pattern for pattern in step.source_patterns)
            if type(step) in (loading.WeightRenaming, loading.PrefixChange) and not inner:
                renames.append(step)
            elif type(step) is loading.WeightConverter:
                splits += _split(step, loading.Chunk)
    return Conversions(tuple(renames), tuple(splits)) if renames or splits else None


def _split(step: Any, chunk: type) -> list[tuple[str, tuple[str, ...]]]:
    """The split that a step of a table makes, if it cuts rows into equal parts and nothing more."""
    sources, targets = step.source_patterns, step.target_patterns
    plain = all(re.fullmatch(r"[\w.]+", pattern) for pattern in (*sources, *targets))
    one = len(sources) == 1 and len(step.operations) == 1 and type(step.operations[0]) is chunk
    if not (plain and one and step.operations[0].dim == 0):
        return []
    ends = ("",) if sources[0].endswith(("weight", "bias")) else (".weight", ".bias")
    return [(sources[0] + end, tuple(target + end for target in targets)) for end in ends]
