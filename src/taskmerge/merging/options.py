"""Sorts the keywords of a merge: what shapes the result, how inputs are understood, and how the run goes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.held import Held, Place
from taskmerge.errors import UsageError, nearest
from taskmerge.experts.arguments import placed
from taskmerge.experts.inputs import InputOptions
from taskmerge.methods.options import Setting, Value
from taskmerge.methods.registry import methods
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Reader, flag_of, read_keywords
from taskmerge.specs.merge import CHOICES, MergeSpec

ADAPTER_RANK, LARGEST_RANK = 16, 1 << 20
Arguments = Sequence[str | Path] | Mapping[str, str | Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that don't shape the result: where it goes and what it may cost."""

    output: Path | None = None
    overwrite: bool = False
    shard_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    digests: bool = True
    with_code: bool = False
    as_adapter: bool = False
    adapter_rank: int = ADAPTER_RANK
    progress: Callable[[int, int], None] | None = None


GROUPS = {group: frozenset(field.name for field in fields(group)) for group in (MergeSpec, InputOptions, RunOptions)}
KEYWORDS = frozenset().union(*GROUPS.values())
"""Every keyword of a merge that is no option of a method."""


def _base(value: object, where: str) -> Place:
    """A path, or a state dict."""
    return placed("base", value) if isinstance(value, Mapping | Held) else read.path(value, where)


READERS: Mapping[str, Reader] = {
    **dict.fromkeys(("method", "then", "strip_prefix", "config_from", "tokenizer_from", *CHOICES), read.text),
    **dict.fromkeys(("dtype", "device"), read.spelled),
    **dict.fromkeys(("lines", "keep_base", "allow_merged", "allow_pickle"), read.switch),
    **dict.fromkeys(("overwrite", "digests", "with_code", "as_adapter"), read.switch),
    **dict.fromkeys(("include", "exclude", "map", "skip_input"), read.globs),
    **dict.fromkeys(("max_memory", "shard_size"), read.size),
    "also": read.names, "keep_from": read.pairs, "weights": read.weights, "seed": read.whole, "threads": read.threads,
    "output": read.path, "base": _base, "progress": read.function,
}  # fmt: skip
"""What makes each of them of what people give."""


def split_options(keywords: Mapping[str, Any]) -> tuple[MergeSpec, InputOptions, RunOptions]:
    """The three groups of keywords; what belongs to none of them is an option of the method. None says nothing."""
    options = read_keywords(READERS, keywords)
    shape, opening, running = ({name: options[name] for name in options if name in names} for names in GROUPS.values())
    spec = MergeSpec(**shape)
    own = {name: value for name, value in options.items() if name not in KEYWORDS}
    if running.get("as_adapter") and "rank" in own and "rank" not in spec.settings():
        running.setdefault("adapter_rank", own.pop("rank"))  # the method has no rank of its own
    if "adapter_rank" in running:
        running["adapter_rank"] = _adapter_rank(running["adapter_rank"], asked=bool(running.get("as_adapter")))
    spec = replace(spec, options=grid(spec, own), grid=grid(spec, spec.grid))
    opening |= {"strip_prefix": spec.strip_prefix, "map": spec.map}
    return spec, InputOptions(**opening), RunOptions(**running)


def _adapter_rank(value: object, *, asked: bool) -> int:
    """The rank of an adapter: a whole number from one on."""
    if not asked:
        raise UsageError("it is the rank of an adapter", where="--adapter-rank", hint="add --as-adapter")
    with suppress(TypeError, ValueError):
        rank = int(str(value))
        if 1 <= rank <= LARGEST_RANK:
            return rank
    raise UsageError(f"`{value}` is no rank of an adapter", where="--adapter-rank", hint="a whole number, such as 16")


def grid(spec: MergeSpec, given: Mapping[str, object]) -> dict[str, tuple[Value, ...]]:
    """The method's options as tuples of checked values: texts may hold grids, sequences are grids."""
    settings = {name: setting for name, (_, setting) in spec.settings().items()}
    options = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in settings:
            raise _no_option(spec.method, key, [setting.flag for setting in settings.values()])
        options[key] = _values(settings[key], value)
    return options


def _no_option(method: str, name: str, flags: Sequence[str]) -> UsageError:
    """The complaint about an option that the method does not have: whose it is, or which of its `flags` is near."""
    flag = f"--{name.replace('_', '-')}"
    owners = [other.name for other in methods().values() if name in other.settings]
    has = f"{method} has {', '.join(flags)}" if flags else f"{method} has no options"
    if owners:
        return UsageError(
            f"`{method}` has no option `{flag}`", where=flag, hint=f"{flag} belongs to {', '.join(owners)}; {has}"
        )
    close = nearest(flag, [*flags, *map(flag_of, KEYWORDS)])
    return UsageError(
        f"unknown option of {method} `{flag}`", where=flag, hint=f"did you mean `{close}`?" if close else has
    )


def _values(setting: Setting, value: object) -> tuple[Value, ...]:
    """The checked values of one option, each once."""
    if isinstance(value, str):
        return tuple(dict.fromkeys(setting.read(value)))
    if isinstance(value, Sequence) and not value:
        raise UsageError("an empty list holds no value", where=setting.flag, hint=f"allowed: {setting.range}")
    if isinstance(value, Sequence):
        return tuple(dict.fromkeys(setting.check(item) for item in value))
    return (setting.check(value),)
