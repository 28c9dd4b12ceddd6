"""How an option of a method is declared, checked and read: type, range, default, grid."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from typing import Any, Literal, Protocol

from taskmerge.errors import TaskmergeError, UsageError, unknown_name
from taskmerge.numerics.rank import Rank

Value = float | int | bool | str | Rank | None
Grid = Value | Sequence[Value]
"""What people give for an option: a value, a sequence of them, or a text such as `0.1,0.2` or `0.1:1.0:0.1`."""
Options = Mapping[str, Value]

LARGEST_GRID = 10_000
LARGEST_NUMBER = 3.4028234663852886e38
"""Of float32, in which tensors are multiplied by it."""
LARGEST_INTEGER = 2**63 - 1
NUMBERS = (float, int)
SERVED = (*NUMBERS, bool, Rank)  # beside the choices of a Literal
SWITCH = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
PREFIXES = ("then_", "lines_")  # of an option of the second method of a chain, or of the factor of --lines
# what `merge` and its recipes call by these names; tests/cli/test_reserved.py compares the list with them
RESERVED = frozenset({
    "adapt_split", "adapter_rank", "allow_merged", "allow_pickle", "also", "as_adapter", "base", "base_rule", "choose",
    "coefficients", "compute_dtype", "config_from", "debug", "device", "digests", "dry_run", "dtype", "earlier",
    "exclude", "experts", "from", "grid", "heads", "help", "include", "inputs", "json", "keep_base", "keep_from",
    "learned", "like", "limit", "lines", "map", "max_memory", "method", "no_digest", "note", "on_buffer", "on_missing",
    "options", "output", "outputs", "overwrite", "progress", "qkv", "quiet", "recipe", "seed", "set", "shard_size",
    "skip_input", "strip_prefix", "suite", "svd", "task", "taskmerge", "then", "threads", "tokenizer_from", "told",
    "weight", "weights", "with_code",
})  # fmt: skip


class BadDeclaration(TypeError):
    """A declaration that taskmerge cannot serve; raised where it stands, when its module is imported."""

    def __init__(self, method: str, problem: str, parameter: str | None = None) -> None:
        place = f"`{method}`" if parameter is None else f"`{method}`, parameter `{parameter}`"
        super().__init__(f"{place}: {problem}")


@dataclass(frozen=True, slots=True)
class Option:
    """What an option means and the range it may take; the default stands in the kernel's signature.

    `low` and `high` are the ends of a number's range, both allowed. `auto` says in words what a default of None
    stands for; `usual` says which value that is, given the method's options and the number of tasks, where it is one.
    """

    help: str
    low: float | None = None
    high: float | None = None
    auto: str | None = None
    usual: "Usual | None" = None


Usual = Callable[[Options, int], Value]
"""What None stands for, of all options of the method and the number of tasks."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared option of a method: name, type (or the choices), default, range."""

    name: str
    type: type | tuple[str, ...]
    default: Value
    option: Option

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def check(self, value: object) -> Value:
        """The value in the option's own type, or `UsageError` with the range."""
        if value is None and self.default is None:
            return None
        if isinstance(self.type, tuple):
            return self._choice(value, self.type)
        if self.type is bool:
            return self._switch(value)
        if self.type is Rank:
            return self._rank(value)
        return self._number(value)

    def read(self, text: str) -> tuple[Value, ...]:
        """The values that a command-line text means: one, or a grid (`0.1,0.2` or `start:stop:step`)."""
        return tuple(self.check(item) for part in text.split(",") for item in _expand(part.strip(), self.flag))

    def understood(self, value: Value) -> str:
        """A value in words."""
        if value is None:
            return self.option.auto or "none"
        return value.understood if isinstance(value, Rank) else f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def range(self) -> str:
        """The permitted values in words."""
        if isinstance(self.type, tuple):
            return " | ".join(self.type)
        if self.type is Rank:
            return "(0, 1], an integer, or energy:(0, 1]"
        if self.type is bool:
            return "true | false"
        low = "" if self.option.low is None else f"{self.option.low:g}"
        high = "" if self.option.high is None else f"{self.option.high:g}"
        kind = "integer" if self.type is int else "number"
        return f"{kind} {low}..{high}" if low or high else kind

    def _rank(self, value: object) -> Rank:
        try:
            return Rank.parse(value if isinstance(value, str | int | float | Rank) else str(value))
        except UsageError as error:
            raise UsageError(error.what, where=self.flag, hint=error.hint) from error

    def _choice(self, value: object, choices: tuple[str, ...]) -> str:
        text = str(value).replace("-", "_")
        for choice in choices:
            if text == choice.replace("-", "_"):
                return choice
        raise unknown_name("choice", str(value), choices, where=self.flag)

    def _switch(self, value: object) -> bool:
        if str(value).lower() not in SWITCH:
            raise UsageError(f"`{value}` is neither true nor false", where=self.flag)
        return SWITCH[str(value).lower()]

    def _number(self, value: object) -> float | int:
        integer = self.type is int
        try:
            number = int(str(value)) if integer else float(str(value))
        except ValueError:
            kind = "integer" if integer else "number"
            raise UsageError(f"`{value}` is no {kind}", where=self.flag, hint=f"allowed: {self.range}") from None
        low, high = self.option.low, self.option.high
        largest = LARGEST_INTEGER if integer else LARGEST_NUMBER
        beyond = not abs(number) <= largest  # NaN too
        if beyond or (low is not None and number < low) or (high is not None and number > high):
            hint = f"allowed: {self.range}" + (f", of a magnitude up to {largest:.3g}" if beyond else "")
            raise UsageError(f"{value} is out of range", where=self.flag, hint=hint)
        return number


def _expand(text: str, flag: str) -> list[str]:
    """`a:b:c` as the decimals a, a+c, ... up to b (exact in decimal); anything else as it is."""
    if text.count(":") != 2:
        return [text]
    try:
        start, stop, step = (Decimal(part) for part in text.split(":"))
        points = (stop - start) / step if step else Decimal(-1)
    except (InvalidOperation, Overflow):
        start = stop = step = points = Decimal("nan")
    if not all(number.is_finite() for number in (start, stop, step, points)):
        hint = "write start:stop:step, such as 0.1:1.0:0.1"
        raise UsageError(f"`{text}` is no grid", where=flag, hint=hint)
    if points >= LARGEST_GRID:
        what = f"the grid `{text}` has more than {LARGEST_GRID} points"
        raise UsageError(what, where=flag, hint="write several smaller grids")
    count = int(points) + 1 if points >= 0 else 0
    if count < 1:
        raise UsageError(
            f"the grid `{text}` has no points", where=flag, hint="write start:stop:step with a step towards stop"
        )
    return [format(start + index * step, "f") for index in range(count)]


class Declares(Protocol):
    """What has a name and options: a method."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Setting]: ...


def bind(declared: Declares, given: Mapping[str, object]) -> dict[str, Value]:
    """All options of a method: defaults, overlaid by what was given (checked; unknown names are refused)."""
    values = {name: setting.default for name, setting in declared.settings.items()}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in declared.settings:
            raise unknown_name(f"option of {declared.name}", name, declared.settings, where=declared.name)
        values[key] = declared.settings[key].check(value)
    return values


def settled(declared: Declares, values: Options, tasks: int) -> dict[str, Value]:
    """Bound options as they run on so many tasks: a number wherever None stands for one."""
    usual = {
        name: setting.check(setting.option.usual(values, tasks))
        for name, setting in declared.settings.items()
        if values[name] is None and setting.option.usual is not None
    }
    return {**values, **usual}


# --- out of a signature ----------------------------------------------------------------------------------------


def declared_settings(kernel: Callable[..., Any], method: str) -> dict[str, Setting]:
    """The options in a kernel's signature: parameters with an `Option` in their annotation.

    `BadDeclaration` for a type that is not served, a name that the command needs itself, or a bad default.
    """
    try:
        hints = typing.get_type_hints(kernel, include_extras=True)
    except NameError as error:
        raise BadDeclaration(method, f"its annotations cannot be read: {error}") from error
    settings = {}
    for name, parameter in inspect.signature(kernel).parameters.items():
        for option in getattr(hints.get(name), "__metadata__", ()):
            if isinstance(option, Option):
                settings[name] = _setting(method, parameter, hints[name].__origin__, option)
    return settings


def _setting(method: str, parameter: inspect.Parameter, hint: Any, option: Option) -> Setting:
    """One parameter as an option."""
    name = parameter.name
    if name in RESERVED:
        raise BadDeclaration(method, f"`--{name.replace('_', '-')}` is an option of the command itself", name)
    if name.startswith(PREFIXES):
        raise BadDeclaration(method, f"an option may not start with {' or '.join(PREFIXES)}", name)
    kind = _served(hint)
    if kind is None:
        wanted = "float, int, bool, Rank or a Literal of texts, each also `| None`"
        raise BadDeclaration(method, f"an option is {wanted}, not {hint}", name)
    if parameter.default is parameter.empty:
        raise BadDeclaration(method, "an option has a default", name)
    _check_range(method, name, kind, option)
    if option.usual is not None and parameter.default is not None:
        raise BadDeclaration(method, "`usual` says what None stands for: the default is None then", name)
    setting = Setting(name, kind, parameter.default, option)
    _check_default(method, setting)
    return setting


def _served(hint: Any) -> type | tuple[str, ...] | None:
    """float, int, bool, Rank, or the choices of a Literal; `X | None` counts as X; None for anything else."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return _served(some[0]) if len(some) == 1 else None
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return choices if all(isinstance(choice, str) for choice in choices) else None
    return hint if hint in SERVED else None


def _check_range(method: str, name: str, kind: type | tuple[str, ...], option: Option) -> None:
    ends = [end for end in (option.low, option.high) if end is not None]
    if ends and kind not in NUMBERS:
        raise BadDeclaration(method, "only numbers have a range", name)
    if ends != sorted(ends):
        raise BadDeclaration(method, f"its range {option.low}..{option.high} is empty", name)


def _check_default(method: str, setting: Setting) -> None:
    """The default must be a value that a user could give."""
    if setting.default is None and setting.option.auto is None:
        raise BadDeclaration(method, "a default of None needs `auto`: what it stands for", setting.name)
    try:
        fits = setting.check(setting.default) == setting.default
    except TaskmergeError:
        fits = False
    if not fits:
        problem = f"the default {setting.default!r} is outside of what it allows ({setting.range})"
        raise BadDeclaration(method, problem, setting.name)
