"""What a merge is asked to do: the options that shape the result, frozen and checked."""

import fnmatch
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from taskmerge.documents import check_text
from taskmerge.errors import UsageError, unknown_name
from taskmerge.methods.composed import Learned
from taskmerge.methods.contract import Method
from taskmerge.methods.options import LARGEST_NUMBER, Setting, Value
from taskmerge.methods.registry import DEFAULT, find
from taskmerge.numerics.rank import Rank
from taskmerge.specs.renaming import parse_renaming
from taskmerge.types import TensorClass

Qkv = Literal["as-is", "split", "fused"]
OnMissing = Literal["refuse", "base", "skip"]
OnBuffer = Literal["refuse", "first"]
Svd = Literal["exact", "randomized"]
WIDENING: tuple[TensorClass, ...] = ("projection", "embedding", "conv")  # classes that --also treats as matrices
SCALE = "coefficient"
FINISH = "task_arithmetic"  # merges what DARE and Breadcrumbs leave, unless --then says otherwise
DEPTH = "lines"  # whose factor --lines puts on other methods
CHOICES = {
    "qkv": ("as-is", "split", "fused"),
    "compute_dtype": ("float32", "float64"),
    "svd": ("exact", "randomized"),
    "on_missing": ("refuse", "base", "skip"),
    "on_buffer": ("refuse", "first"),
    "heads": ("refuse", "keep"),
}
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
SHORT = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "float": "float32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSpec:
    """Everything that shapes a merged checkpoint besides its inputs. `options` hold grids: a tuple of values each.

    `keep_from` are pairs of an input (`base`, or a task) and a glob: what matches is copied from it, unmerged.
    `grid` is the grid that a replayed point was part of: what was factored for one point served the next. `learned` is
    what adaptation has learnt; a recipe has its digest.
    """

    method: str = DEFAULT
    then: str | None = None
    lines: bool = False
    options: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_from: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()
    qkv: Qkv = "as-is"
    dtype: str | None = None
    compute_dtype: Literal["float32", "float64"] = "float32"
    svd: Svd = "exact"
    seed: int = 0
    on_missing: OnMissing = "refuse"
    on_buffer: OnBuffer = "refuse"
    heads: Literal["refuse", "keep"] = "refuse"
    strip_prefix: str = ""
    map: tuple[str, ...] = ()
    config_from: str | None = None
    tokenizer_from: str | None = None
    grid: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    learned: Learned | None = None

    def __post_init__(self) -> None:
        """Brings names into their one spelling and refuses values that mean nothing."""
        plain: dict[str, object] = {
            "method": find(self.method).name,
            "then": self.then and find(self.then, where="--then").name,
        }
        plain |= {name: checked_choice(name, getattr(self, name)) for name in CHOICES}
        plain["dtype"] = None if self.dtype is None else dtype_code(self.dtype)
        for name in ("include", "exclude", "also", "map"):
            value = getattr(self, name)
            plain[name] = (value,) if isinstance(value, str) else tuple(value)
        for text in plain["map"]:  # type: ignore[attr-defined]  # a tuple, as just made
            parse_renaming(text)
        plain["keep_from"] = tuple(map(checked_pair, self.keep_from))
        for name in self.also:
            if name not in WIDENING:
                raise unknown_name("class of tensors", name, WIDENING, where="--also")
        for task, weight in self.weights.items():
            if not abs(weight) <= LARGEST_NUMBER:  # NaN too
                raise UsageError(f"the weight of `{task}` is {weight}", where="--weight", hint="give a finite number")
        globs = [glob for pair in self.keep_from for glob in pair]
        for text in (self.strip_prefix, *globs, *plain["include"], *plain["exclude"]):  # type: ignore[misc]
            _check_unicode(text)
        if not isinstance(self.learned, Learned | None):
            raise UsageError(f"`learned` is what adaptation has learnt, not `{self.learned}`", where="learned")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def keeper(self, name: str) -> str | None:
        """The input that a tensor is copied from, by the first glob of `keep_from` that matches; None: it is merged."""
        return next((who for who, glob in self.keep_from if fnmatch.fnmatchcase(name, glob)), None)

    def chain(self) -> tuple[Method, ...]:
        """The methods in the order they act: transforms of the task vectors, then the one that merges."""
        first = find(self.method)
        if first.gives == "merged":
            if self.then:
                raise UsageError(
                    f"`{first.name}` merges by itself", where="--then", hint="--then follows dare or breadcrumbs"
                )
            return (first,)
        last = find(self.then or FINISH, where="--then")
        if last.gives != "merged" or last.space != "delta":
            raise UsageError(
                f"`{last.name}` cannot merge the task vectors that {first.name} leaves", where="--then",
                hint="name a method on task vectors, such as ties or task_arithmetic",
            )  # fmt: skip
        return (first, last)

    def members(self) -> list[tuple[Method, dict[str, str]]]:
        """Every method that acts, --lines last, with its options: the name that they go by here -> the method's own.

        A name that several declare is the first's; the others' start with `then_` or `lines_`.
        """
        acting = list(zip(("", "then_"), self.chain(), strict=False))
        if self.lines:
            if acting[-1][1].space != "delta":
                raise UsageError(
                    f"--lines scales merged task vectors; `{acting[-1][1].name}` has none", where="--lines",
                    hint="use it with a method on task vectors, such as task_arithmetic, ties or tsv_m",
                )  # fmt: skip
            acting.append(("lines_", find(DEPTH)))
        members: list[tuple[Method, dict[str, str]]] = []
        for prefix, method in acting:
            taken = {name for _, names in members for name in names}
            members.append((method, {f"{prefix}{name}" if name in taken else name: name for name in method.settings}))
        return members

    def settings(self) -> dict[str, tuple[Method, Setting]]:
        """Every option that this chain (and --lines) understands, by the name that it goes by here."""
        return {
            name: (method, replace(method.settings[own], name=name))
            for method, names in self.members()
            for name, own in names.items()
        }

    def points(self) -> Iterator[dict[str, Value]]:
        """The points of the grid: one value for every option that was given."""
        names = sorted(self.options)
        for values in itertools.product(*(self.options[name] for name in names)):
            yield dict(zip(names, values, strict=True))

    def factored(self) -> dict[str, tuple[Value, ...]]:
        """The values that one run factors matrices for, where that is more than one point's; scales factor nothing."""
        (first, *more), given = self.chain(), dict(self.options)
        if more or first.granularity(first.defaults()) != "matrix":
            return {}
        if all(set(given.get(name, ())) <= set(values) for name, values in self.grid.items()):
            given |= self.grid
        own = [name for name in sorted(given) if name in first.settings and name != SCALE]
        return {name: given[name] for name in own if len(given[name]) > 1}

    def recipe(self, point: Mapping[str, Value]) -> dict[str, object]:
        """The recipe of one output: what differs from the defaults, options of the point written out in full."""
        recipe: dict[str, object] = {"taskmerge": 1, "method": self.method}
        plain = MergeSpec()
        for own in fields(self):
            value = getattr(self, own.name)
            if own.name not in (*recipe, "options", "weights", "grid", "learned") and value != getattr(plain, own.name):
                recipe[own.name] = _listed(value) if isinstance(value, tuple) else value
        values = {name: point.get(name, setting.default) for name, (_, setting) in self.settings().items()}
        recipe["options"] = {name: plain_value(value) for name, value in sorted(values.items())}
        if self.weights:
            recipe["weights"] = dict(sorted(self.weights.items()))
        if self.learned is not None:
            recipe["learned"] = self.learned.digest
        if self.factored():
            factored = self.factored().items()
            recipe["grid"] = {name: [plain_value(value) for value in values] for name, values in factored}
        return recipe


def _check_unicode(text: str) -> None:
    """Refuses bytes of the command line that are no UTF-8: they match no tensor, and no recipe can hold them."""
    try:
        check_text(text)
    except ValueError:
        raise UsageError(f"`{text}` is no UTF-8", where="names of tensors", hint="write it in UTF-8") from None


def _listed(value: tuple[object, ...]) -> list[object]:
    """Tuples as YAML and JSON hold them."""
    return [list(item) if isinstance(item, tuple) else item for item in value]


def checked_pair(value: object, where: str = "--keep-from") -> tuple[str, str]:
    """An input's name and a glob."""
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
        hint = "such as `--keep-from base 'lm_head.*'`, in a recipe `keep_from: [[base, lm_head.*]]`"
        raise UsageError(f"`{value}` is no input and glob", where=where, hint=hint)
    return pair


def plain_value(value: Value) -> object:
    """An option's value as YAML and JSON hold it; ranks keep their spelling (0.08, 8, energy:0.95)."""
    if isinstance(value, Rank):
        return int(value.value) if value.kind == "count" else value.value if value.kind == "ratio" else str(value)
    return value


def checked_choice(name: str, value: object, where: str | None = None) -> object:
    """The value if the option `name` allows it; `where` is the option itself unless a recipe says otherwise."""
    if value not in CHOICES[name]:
        raise UsageError(
            f"`{value}` is no value of `{name.replace('_', '-')}`", where=where or f"--{name.replace('_', '-')}",
            hint=f"one of {', '.join(CHOICES[name])}",
        )  # fmt: skip
    return value


def dtype_code(text: str, where: str = "--dtype") -> str:
    """The safetensors code of a type: `float16`, `fp16`, `half` and `F16` mean the same."""
    if text in DTYPES.values():
        return text
    name = SHORT.get(str(text).lower(), str(text).lower().removeprefix("torch."))
    if name not in DTYPES:
        raise unknown_name("type", str(text), DTYPES, where=where)
    return DTYPES[name]
