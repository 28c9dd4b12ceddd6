"""Configurations of models side by side: what changes the meaning of weights, what all share, where they differ."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.checkpoint.quantised import CONFIG_KEYS

Config = Mapping[str, Any]
Key = tuple[str, ...]

MEANING = re.compile(
    r"(num|n|encoder|decoder)_(attention_|key_value_|kv_)?heads?|(attention_)?head_dim|d_kv|kv_channels"
    r"|rope_.*|.*rotary.*|(.*_)?eps(ilon)?"
    r"|(.*_)?act(ivation)?|(.*_)?activation_function|(\w+_)?vocab_size|max_position_embeddings|n_positions|n_ctx"
)
"""Keys by which the same weights become another function."""
HOUSEKEEPING = frozenset({
    "_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "_attn_implementation", "_attn_implementation_autoset", *CONFIG_KEYS,
})  # fmt: skip
"""Keys that say where a configuration comes from, or what the output decides."""
DTYPE = ("dtype", "torch_dtype")


def entries(config: Config, above: Key = ()) -> dict[Key, Any]:
    """The values of a configuration, those of the models in it (`text_config`) under their own keys."""
    found: dict[Key, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict) and key not in HOUSEKEEPING:
            found |= entries(value, (*above, key))
        elif key not in HOUSEKEEPING:
            found[*above, key] = value
    return found


def clashes(configs: Mapping[str, Config]) -> list[str]:
    """A line for every key that changes what weights mean and has several values, with who says which.

    A key that a configuration lacks, or that is null there, is the default, which nobody can know here.
    """
    lines = []
    said = {name: entries(config) for name, config in configs.items()}
    for key in sorted({key for one in said.values() for key in one if MEANING.fullmatch(key[-1])}):
        holders = holders_of(key, said)
        if len(holders) > 1:
            lines.append(f"`{'.'.join(key)}`: " + "; ".join(f"{value} in {', '.join(who)}" for value, who in holders))
    return lines


def holders_of(key: Key, said: Mapping[str, Mapping[Key, Any]]) -> list[tuple[Any, list[str]]]:
    """(value, who says it) for every value of a key."""
    holders: list[tuple[Any, list[str]]] = []
    for name, values in said.items():
        value = values.get(key)
        if value is None and not (key in values and key[-1] == "rope_scaling"):
            continue
        value = _scaling(value) if key[-1] == "rope_scaling" else value
        same = next((who for other, who in holders if other == value or repr(other) == repr(value)), None)  # NaN
        if same is None:
            holders.append((value, [name]))
        else:
            same.append(name)
    return holders


def _scaling(value: Any) -> Any:
    """Of a rope's scaling, what it is if it does something."""
    plain = isinstance(value, dict) and value.get("rope_type", value.get("type")) == "default"
    return None if plain else value


def differing(configs: Mapping[str, Config]) -> list[str]:
    """The keys that two configurations give different values."""
    said = {name: entries(config) for name, config in configs.items()}
    keys = sorted({key for one in said.values() for key in one})
    return [".".join(key) for key in keys if len(holders_of(key, said)) > 1]


def shared(experts: Sequence[Config]) -> dict[Key, Any]:
    """What all experts that say it give the same value."""
    said = {str(place): entries(config) for place, config in enumerate(experts)}
    found = {key: holders_of(key, said) for key in dict.fromkeys(key for one in said.values() for key in one)}
    return {key: holders[0][0] for key, holders in found.items() if len(holders) == 1}


def with_values(config: Config, values: Mapping[Key, Any]) -> dict[str, Any]:
    """A configuration with other values; what belongs to a model that it has no part for is left out."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for (first, *rest), value in values.items():
        if not rest:
            changed[first] = value
        elif isinstance(changed.get(first), dict):
            changed[first] = with_values(changed[first], {tuple(rest): value})
    return changed


def with_dtype(config: Config, name: str) -> dict[str, Any]:
    """A configuration that says what type its weights are written in, wherever it said another."""
    changed = {key: name if key in DTYPE and isinstance(value, str) else value for key, value in config.items()}
    inner = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    return changed | {key: with_dtype(value, name) for key, value in inner.items() if key not in CONFIG_KEYS}
