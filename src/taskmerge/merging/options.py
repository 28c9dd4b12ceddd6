"""Sorts the keywords of a merge: what shapes the result, how inputs are understood, and how the run goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from taskmerge.errors import UsageError, nearest
from taskmerge.experts.inputs import InputOptions
from taskmerge.methods.options import Setting, Value
from taskmerge.methods.registry import methods
from taskmerge.specs.merge import MergeSpec

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
    progress: Callable[[int, int], None] | None = None


def split_options(
    method: str | None, base: str | Path | None, output: str | Path | None, weights: Mapping[str, float] | None,
    options: Mapping[str, Any],
) -> tuple[MergeSpec, InputOptions, RunOptions]:  # fmt: skip
    """The three groups of keywords; what belongs to none of them is an option of the method (None: the usual one)."""
    groups: dict[type, dict[str, Any]] = {MergeSpec: {}, InputOptions: {}, RunOptions: {}}
    fields_of = {one: {field.name for field in fields(one)} for one in (MergeSpec, InputOptions, RunOptions)}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        owner = next((one for one, names in fields_of.items() if name in names), None)
        (rest if owner is None else groups[owner])[name] = value
    groups[InputOptions]["base"] = None if base is None else Path(base)
    groups[RunOptions]["output"] = None if output is None else Path(output)
    groups[MergeSpec] |= {"weights": dict(weights or {})} | ({} if method is None else {"method": method})
    spec = MergeSpec(**groups[MergeSpec])
    spec = replace(spec, options=grid(spec, rest), grid=grid(spec, spec.grid))
    opening = InputOptions(**{**groups[InputOptions], "strip_prefix": spec.strip_prefix})
    return spec, opening, RunOptions(**groups[RunOptions])


def grid(spec: MergeSpec, given: Mapping[str, object]) -> dict[str, tuple[Value, ...]]:
    """The method's options as tuples of checked values: texts may hold grids, sequences are grids."""
    settings = {name: setting for name, (_, setting) in spec.settings().items()}
    found = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in settings:
            raise _no_option(spec.method, key, [setting.flag for setting in settings.values()])
        found[key] = _values(settings[key], value)
    return found


def _no_option(method: str, name: str, known: Sequence[str]) -> UsageError:
    """The complaint about an option that the method does not have: whose it is, or which name is near."""
    flag = f"--{name.replace('_', '-')}"
    owners = [one.name for one in methods().values() if name in one.settings]
    has = f"{method} has {', '.join(known)}" if known else f"{method} has no options"
    if owners:
        return UsageError(
            f"`{method}` has no option `{flag}`", where=flag, hint=f"{flag} belongs to {', '.join(owners)}; {has}"
        )
    close = nearest(flag, known)
    return UsageError(
        f"unknown option of {method} `{flag}`", where=flag, hint=f"did you mean `{close}`?" if close else has
    )


def _values(setting: Setting, value: object) -> tuple[Value, ...]:
    """The checked values of one option, each once."""
    if isinstance(value, str):
        return tuple(dict.fromkeys(setting.read(value)))
    if isinstance(value, Sequence):
        return tuple(dict.fromkeys(setting.check(one) for one in value))
    return (setting.check(value),)
