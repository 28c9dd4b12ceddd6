"""Reads recipe files: strict YAML, every complaint with line and column and the nearest key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmerge.errors import UsageError, nearest, unknown_name
from taskmerge.methods.registry import DEFAULT, methods, setting
from taskmerge.specs.document import Places, read_document, read_value
from taskmerge.specs.keywords import weight
from taskmerge.specs.merge import CHOICES, checked_choice, checked_pair, dtype_code

FORMAT = 1
TEXTS = ("method", "then", "strip_prefix", "config_from", "tokenizer_from")
LEARNED = "learned"  # the digest of what adaptation has learnt, which lies beside the recipe
LISTS = ("include", "exclude", "also", "map")
PAIRS = "keep_from"  # inputs and globs
MOST_PATTERNS = 10_000
PATHS = ("base", "output")
MAPPINGS = ("options", "weights", "experts", "grid")
KEYS = frozenset({"taskmerge", PAIRS, "dtype", "seed", "lines", LEARNED, *CHOICES, *TEXTS, *LISTS, *PATHS, *MAPPINGS})
SETTABLE = KEYS - {"taskmerge", LEARNED, PAIRS, *MAPPINGS}  # by --set
RUNNING = frozenset({
    "device", "threads", "max_memory", "overwrite", "shard_size", "dry_run", "json", "quiet", "debug", "allow_pickle",
    "allow_merged", "keep_base", "skip_input", "recipe", "with_code",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as written: what shapes the result (`shape`, keywords of `merge`), the method's options, and inputs."""

    shape: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    experts: Mapping[str, str] | Sequence[str] = ()
    base: str | None = None
    output: str | None = None
    places: Places = field(default_factory=dict)


def load_recipe(path: Path) -> Recipe:
    """A recipe file, checked key by key. Its paths are relative to it, and stay so here."""
    document = read_document(path, "recipe", f"start with `method: {DEFAULT}`", verbatim=("options", "grid"))
    return parse_recipe(document.values, str(path), document.places)


def parse_recipe(values: Mapping[str, Any], where: str, places: Places | None = None) -> Recipe:
    """A recipe from plain values; `where` names it wherever `places` knows nothing better."""
    at = {key: (places or {}).get(key, where) for key in values}
    for key in values:
        if key not in KEYS:
            raise _unknown_key(key, values[key], at[key])
    if values.get("taskmerge", FORMAT) != FORMAT:
        raise UsageError(
            f"format {values['taskmerge']} of recipes is not known",
            where=at["taskmerge"],
            hint=f"this version reads {FORMAT}",
        )
    shape = {
        key: _checked(key, value, at[key])
        for key, value in values.items()
        if key not in (*MAPPINGS, *PATHS, "taskmerge")
    }
    if values.get("grid"):
        shape["grid"] = _nested("grid", values, at, "for example `grid: {rank: [0.04, 0.08]}`")
    options = _nested("options", values, at, "for example `options: {rank: 0.08}`")
    weights = _nested("weights", values, at, "for example `weights: {mnist: 1.5}`")
    numbers = {
        task: weight(task, value, (places or {}).get(f"weights.{task}", where)) for task, value in weights.items()
    }
    base, output = (None if values.get(key) is None else _text(key, values[key], at[key]) for key in PATHS)
    return Recipe(shape, options, numbers, _experts(values.get("experts"), at), base, output, dict(places or {}))


def load_weights(path: Path) -> dict[str, float]:
    """A YAML or JSON file of task weights, `NAME: VALUE`."""
    document = read_document(path, "file of coefficients", "write one `mnist: 0.3` a line")
    return {task: weight(task, value, document.places[task]) for task, value in document.values.items()}


def load_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set key=value` pairs as keywords of `merge`: a recipe's key, or an option of some method."""
    found: dict[str, Any] = {}
    declared = {name for one in methods().values() for name in one.settings}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"`{pair}` is no key=value", where="--set", hint="such as --set rank=0.08")
        name = key.strip().removeprefix("options.").replace("-", "_")
        where = f"--set {key.strip()}"
        if setting(name) is not None:
            found[name] = text
        elif name in PATHS:
            found[name] = Path(text)
        elif name in SETTABLE:
            value = text.split(",") if name in LISTS else text if name in TEXTS else read_value(text, where)
            found[name] = _checked(name, value, where)
        else:
            raise unknown_name("recipe key or option", name, declared | SETTABLE, where=where)
    return found


# --- values ----------------------------------------------------------------------------------------------------


def _unknown_key(key: str, value: object, where: str) -> UsageError:
    """The complaint about a key that recipes don't have, with the way out for an option that stands too far left."""
    if setting(key.replace("-", "_")) is not None:
        said = value if isinstance(value, str | int | float) else "…"
        hint = f"options of the method stand under `options:`, as `options: {{{key.replace('-', '_')}: {said}}}`"
        return UsageError(f"unknown key `{key}`", where=where, hint=hint)
    if key.replace("-", "_") in RUNNING:
        hint = f"a recipe holds what shapes the result: give --{key.replace('_', '-')} on the command line"
        return UsageError(f"unknown key `{key}`", where=where, hint=hint)
    close = nearest(key, KEYS)
    hint = f"did you mean `{close}`?" if close else f"known keys: {', '.join(sorted(KEYS))}"
    return UsageError(f"unknown key `{key}`", where=where, hint=hint)


def _checked(key: str, value: Any, where: str) -> Any:
    """One value that shapes the result, in its own type."""
    if key in LISTS:
        if isinstance(value, list | tuple) and len(value) > MOST_PATTERNS:
            what = f"`{key}` has {len(value):,} entries, more than {MOST_PATTERNS:,}"
            raise UsageError(what, where=where, hint="a glob stands for many names: `blocks.*.attn.*`")
        return tuple(_text(key, item, where) for item in (value if isinstance(value, list | tuple) else [value]))
    if key == PAIRS:
        return tuple(checked_pair(pair, where) for pair in (value if isinstance(value, list | tuple) else [value]))
    if key == "seed":
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"`seed` is an integer, not `{value}`", where=where, hint="such as `seed: 0`")
        return value
    if key == "lines":
        if not isinstance(value, bool):
            raise UsageError(f"`lines` is true or false, not `{value}`", where=where, hint="write `lines: true`")
        return value
    text = _text(key, value, where)
    if key == "dtype":
        return dtype_code(text, where)
    return checked_choice(key, text, where) if key in CHOICES else text


def _text(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"`{key}` is a text, not `{value}`", where=where, hint="put it in quotes if it looks like a number"
        )
    return value


def _nested(key: str, values: Mapping[str, Any], at: Places, hint: str) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f"`{key}` is a mapping", where=at[key], hint=hint)
    return value


def _experts(value: Any, at: Places) -> dict[str, str] | list[str]:
    """Task names to paths, or a list of paths."""
    if isinstance(value, dict):
        return {task: _text(task, path, at["experts"]) for task, path in value.items()}
    return (
        [_text("experts", one, at["experts"]) for one in (value if isinstance(value, list) else [value])]
        if value
        else []
    )
