"""What a merging method declares about itself, and how its options are read.

A method is one function on tensors, its *kernel*, under the decorator `@method`. The first argument is

- `stack` [task, *shape] for `reads="elements"` (any slice of a tensor, flattened or not, in any size) and
  `reads="tensor"` (always the whole tensor, in its own shape);
- `matrices`, a `TaskMatrices`, for `reads="matrix"` (tensors of class `linear`, and what `--also` adds;
  every other tensor goes to the kernel `elsewhere`, or stays at the origin when that is None).

Keyword parameters with an `Option` in their annotation are the method's options. These others are handed in
by name when a kernel has them: `weights` [task] float64, one a task (ones by default; a method without it
refuses `--weight`), `statistic` (what `statistic=` returned), `shared` (what `shared=` made of the matrices, once for
all points of a grid that agree in the options it names), `uniform` (a function without arguments that
returns a float32 tensor like `stack`, uniform in [0, 1), a function of seed, task, tensor name and element only),
`position` (block index and number of blocks of the tensor, or None outside blocks).

The engine subtracts and adds the origin, up-casts, casts back and checks finiteness; a kernel does none of it,
never writes into `stack`, opens no file and keeps no state. `space` says what the rows are: `weight` θ_t,
`delta` θ_t - θ₀ (the result is added to θ₀), `centred` θ_t - θ̄ (the result is added to the weighted mean θ̄).
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar

from torch import Tensor

from taskmerge.errors import UsageError, unknown_name
from taskmerge.numerics.rank import Rank
from taskmerge.types import Space

Kernel = Callable[..., Tensor]
Reads = Literal["elements", "tensor", "matrix"]
Value = float | int | bool | str | Rank | None
Options = Mapping[str, Value]
R = TypeVar("R")

HANDED_IN = frozenset({"weights", "statistic", "shared", "uniform", "position"})
LARGEST_GRID = 10_000

Statistic = Callable[..., Any]
"""First pass: `statistic(scan, **options it names)` returns a frozen value for the kernel, or None.

The scan (`numerics.selection.Scan`) passes all float tensors of the model: slices of `stack` [task, count], in
canonical order, computed in parallel.
"""
Shared = Callable[..., Any]
"""`shared(matrices, **options it names)`: what is costly in a kernel on matrices; the kernel never writes into it."""


@dataclass(frozen=True, slots=True)
class Option:
    """What an option means and the range it may take; the default stands in the kernel's signature.

    `auto` says in words what a default of None stands for.
    """

    help: str
    low: float | None = None
    high: float | None = None
    auto: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared option of a method: name, type, default, range."""

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
            return self._choice(value)
        if self.type is bool:
            return self._switch(value)
        if self.type is Rank:
            return Rank.parse(value if isinstance(value, str | int | float | Rank) else str(value))
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

    def _choice(self, value: object) -> str:
        text = str(value).replace("-", "_")
        for choice in typing.cast(tuple[str, ...], self.type):
            if text == choice.replace("-", "_"):
                return choice
        raise unknown_name("choice", str(value), typing.cast(tuple[str, ...], self.type), where=self.flag)

    def _switch(self, value: object) -> bool:
        known = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if str(value).lower() not in known:
            raise UsageError(f"`{value}` is neither true nor false", where=self.flag)
        return known[str(value).lower()]

    def _number(self, value: object) -> float | int:
        integer = self.type is int
        try:
            number = int(str(value)) if integer else float(str(value))
        except ValueError:
            kind = "integer" if integer else "number"
            raise UsageError(f"`{value}` is no {kind}", where=self.flag, hint=f"allowed: {self.range}") from None
        low, high = self.option.low, self.option.high
        endless = isinstance(number, float) and not math.isfinite(number)
        if endless or (low is not None and number < low) or (high is not None and number > high):
            raise UsageError(f"{value} is out of range", where=self.flag, hint=f"allowed: {self.range}")
        return number


def _expand(text: str, flag: str) -> list[str]:
    """`a:b:c` as the decimals a, a+c, ... up to b (exact in decimal); anything else as it is."""
    if text.count(":") != 2:
        return [text]
    try:
        start, stop, step = (Decimal(part) for part in text.split(":"))
    except InvalidOperation:
        raise UsageError(
            f"`{text}` is no grid", where=flag, hint="write start:stop:step, such as 0.1:1.0:0.1"
        ) from None
    count = int((stop - start) / step) + 1 if step else 0
    if count > LARGEST_GRID:
        raise UsageError(f"the grid `{text}` has {count} points", where=flag, hint="write several smaller grids")
    if count < 1:
        raise UsageError(
            f"the grid `{text}` has no points", where=flag, hint="write start:stop:step with a step towards stop"
        )
    return [format(start + index * step, "f") for index in range(count)]


@dataclass(frozen=True)
class Method:
    """A method's declaration: everything that the engine, the command line and the docs know about it."""

    name: str
    kernel: Kernel
    space: Space
    reads: Reads | Callable[[Options], Reads]
    title: str
    formula: str
    paper: str
    gives: Literal["merged", "task_vectors"] = "merged"
    elsewhere: Kernel | None = None
    statistic: Statistic | None = None
    shared: Shared | None = None
    symmetric: bool = True
    tasks: tuple[int, int | None] = (1, None)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the kernel's docstring."""
        return (inspect.getdoc(self.kernel) or "").partition("\n")[0]

    @property
    def weighted(self) -> bool:
        return takes(self.kernel, "weights")

    @property
    def random(self) -> bool:
        return takes(self.kernel, "uniform")

    @property
    def needs_base(self) -> bool:
        return self.space == "delta"

    def granularity(self, options: Options) -> Reads:
        """What the kernel reads at a time under these options."""
        return self.reads(options) if callable(self.reads) else self.reads

    def defaults(self) -> dict[str, Value]:
        return {name: setting.default for name, setting in self.settings.items()}


def takes(kernel: Callable[..., Any], name: str) -> bool:
    """Whether a kernel has a parameter of this name."""
    return name in inspect.signature(kernel).parameters


def accepted(kernel: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that a kernel has parameters for."""
    known = inspect.signature(kernel).parameters
    return {name: value for name, value in values.items() if name in known}


def method(
    *,
    space: Space,
    reads: Reads | Callable[[Options], Reads],
    title: str,
    formula: str,
    paper: str,
    gives: Literal["merged", "task_vectors"] = "merged",
    elsewhere: Kernel | None = None,
    statistic: Statistic | None = None,
    shared: Shared | None = None,
    symmetric: bool = True,
    tasks: tuple[int, int | None] = (1, None),
    notes: tuple[str, ...] = (),
) -> Callable[[Kernel], Kernel]:
    """Declares a kernel as a method; the function itself comes back unchanged, with its declaration attached.

    `gives="task_vectors"` marks a kernel that returns a new stack (DARE, Breadcrumbs), which `--then METHOD` merges.
    """

    def describe(kernel: Kernel) -> Kernel:
        name = getattr(kernel, "__name__", "method")
        declared = Method(
            name, kernel, space, reads, title, formula, paper, gives, elsewhere, statistic, shared, symmetric, tasks,
            notes, _settings(kernel),
        )  # fmt: skip
        setattr(kernel, "declaration", declared)  # noqa: B010  mypy knows no attributes of functions
        return kernel

    return describe


def declaration(kernel: Kernel) -> Method:
    """The declaration that `@method` attached to a kernel."""
    found = getattr(kernel, "declaration", None)
    if not isinstance(found, Method):
        raise TypeError(f"{kernel!r} is not declared with @method")
    return found


def _settings(kernel: Kernel) -> dict[str, Setting]:
    """The options in a kernel's signature."""
    hints = typing.get_type_hints(kernel, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(kernel).parameters.items():
        for option in getattr(hints.get(name), "__metadata__", ()):
            if isinstance(option, Option):
                found[name] = Setting(name, _plain(hints[name].__origin__), parameter.default, option)
    return found


def _plain(hint: Any) -> type | tuple[str, ...]:
    """float, int, bool, Rank, or the choices of a Literal; `X | None` counts as X."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is Literal:
        return tuple(str(choice) for choice in typing.get_args(hint))
    return typing.cast(type, hint)


def bind(declared: Method, given: Mapping[str, object]) -> dict[str, Value]:
    """All options of a method: defaults, overlaid by what was given (checked; unknown names are refused)."""
    values = declared.defaults()
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in declared.settings:
            raise unknown_name(f"option of {declared.name}", name, declared.settings, where=declared.name)
        values[key] = declared.settings[key].check(value)
    return values
