"""What an adaptation is asked to do: a method, what of its parts is replaced, horizon and rates; frozen and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from taskmerge.errors import UsageError, listed, unknown_name
from taskmerge.methods.adaptive import (
    OBJECTIVES,
    Adaptive,
    Block,
    BlockStart,
    Coefficients,
    Filter,
    Heads,
    HeadsStart,
    Learnable,
    Masks,
    Objective,
    On,
    Parts,
    Relaxed,
    Truncated,
    Updates,
    Whole,
    mask_rate,
)  # fmt: skip
from taskmerge.methods.adaptive_registry import RECOMMENDED, adaptive_methods, find_adaptive
from taskmerge.methods.options import Value, bind
from taskmerge.numerics.rank import Rank
from taskmerge.specs.merge import plain_value

BLOCK_RATE = 1e-3
"""Adam's rate of a block and of coefficients beside it: at the heads' 1e-2 the first steps undo what was learnt."""
LAYERS = ("head", "first", "middle", "last", "early", "late", "all")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "origin": ("base", "mean"),
    "objective": OBJECTIVES,
    "on": get_args(On),
    "filter": get_args(Filter),
    "updates": get_args(Updates),
    "heads_start": get_args(HeadsStart),
    "block_start": get_args(BlockStart),
    "stop": ("agreement",),
    "amp": ("bf16",),
}
POSITIVE = ("batch_size", "every", "watch", "limit")
RATES = ("lr", "head_lr", "mask_lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSpec:
    """Everything that shapes an adapted model besides its inputs; None where the method's own choice counts.

    `rank` truncates the task vectors of a method that takes them whole. `iterations` visit every task once. `init` is
    a training-free method's name, a checkpoint, a folder of `adapt`, or a file of coefficients. `stop` follows a
    measure without labels on `held_out` of the items, every `every` updates.
    `head_pull` is the pull of fitted heads towards the original ones (None: chosen by items left out of the fit),
    `head_temperature` what their logits and the experts' are divided by (None: the spread of these over classes).
    """

    method: str = RECOMMENDED
    options: Mapping[str, Value] = field(default_factory=dict)
    with_: str | None = None
    origin: Literal["base", "mean"] | None = None
    rank: Rank | None = None
    train: tuple[str, ...] = ()
    objective: Objective | None = None
    on: On | None = None
    filter: Filter | None = None
    updates: Updates | None = None
    layer: str | None = None
    block_start: BlockStart | None = None
    iterations: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    head_lr: float | None = None
    mask_lr: float | None = None
    project: bool = False
    parity: bool = False
    init: str | None = None
    init_options: Mapping[str, Value] = field(default_factory=dict)
    heads_start: HeadsStart | None = None
    refit_heads: bool = False
    head_pull: float | None = None
    head_temperature: float | None = None
    teacher_scale: float = 1.0
    stop: Literal["agreement"] | None = None
    held_out: float = 0.2
    every: int | None = None
    watch: int | None = None
    amp: Literal["bf16"] | None = None
    seed: int = 0
    adapt_split: str = "adapt"
    tasks: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        """Brings names into their one spelling and refuses values that mean nothing."""
        object.__setattr__(self, "method", find_adaptive(self.method).name)
        object.__setattr__(self, "options", bind_given(self.declared, self.options))
        if self.with_ is not None:
            object.__setattr__(self, "with_", find_adaptive(self.with_, where="--with").name)
        if self.rank is not None:
            object.__setattr__(self, "rank", Rank.parse(self.rank))
        for name in ("train", "tasks"):
            said = getattr(self, name)
            object.__setattr__(self, name, (said,) if isinstance(said, str) else tuple(said))
        if _is_number(self.layer):
            object.__setattr__(self, "layer", str(self.layer))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise unknown_name(name.replace("_", " "), str(value), choices, where=_flag(name))
        self._check_numbers()
        _check_layer(self.layer)

    def _check_numbers(self) -> None:
        """Refuses what is no number, or out of its range."""
        for name in POSITIVE:
            _check_whole(name, getattr(self, name), least=1)
        _check_whole("iterations", self.iterations, least=0)
        _check_whole("seed", self.seed if self.seed is not None else math.nan)
        for name in (*RATES, "head_pull", "head_temperature"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise UsageError(f"{value} is out of range", where=_flag(name), hint="give a number above 0")
        if not (_is_number(self.held_out) and 0 < self.held_out < 1):
            raise UsageError(f"{self.held_out} is no share", where="--held-out", hint="such as 0.2")
        if not (_is_number(self.teacher_scale) and math.isfinite(self.teacher_scale)):
            raise UsageError(f"{self.teacher_scale} is no factor", where="--teacher-scale", hint="such as 0.8")

    @property
    def declared(self) -> Adaptive:
        """The method's declaration."""
        return find_adaptive(self.method)

    def parts(self) -> Parts:
        """The method's parts with everything replaced that these options replace."""
        parts = self._with(self._bound())
        parts = self._published(parts) if self.parity else parts
        parts = self._with_block(parts)
        if self.train:
            parts = parts.trained(self.train)
        if self.heads_start is not None:
            parts = _with_heads(parts, self.heads_start)
        names = ("origin", "objective", "on", "filter", "updates", "iterations", "batch_size")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if parts.origin == "init" and "origin" in given:
            hint = "give --init METHOD, or choose a method that combines task vectors"
            raise UsageError(f"`{self.method}` leaves the encoder as it is", where="--origin", hint=hint)
        parts = self._truncated(replace(parts, **given, refit=parts.refit or self.refit_heads))
        self._check_projected(parts)
        self._check_entries(parts)
        self._check_shaping(parts)
        self._check_updates(parts)
        return parts

    def rates(self, parts: Parts, updates: int) -> dict[str, float]:
        """Adam's learning rate by learnable."""
        usual = {name: parts.rates.get(name) for name in parts.learns}
        given = {"heads": self.head_lr, "masks": self.mask_lr, "relaxed": self.mask_lr}
        rates: dict[str, float] = {}
        for name, own in usual.items():
            said = given.get(name, self.lr)
            rates[name] = said if said is not None else own if own is not None else mask_rate(updates)
        return rates

    def recipe(self) -> dict[str, object]:
        """What differs from the defaults, as plain values; options of the method in full."""
        plain = AdaptSpec()
        given: dict[str, object] = {"method": self.method}
        for own in fields(self):
            value = getattr(self, own.name)
            if own.name not in ("method", "options", "init_options") and value != getattr(plain, own.name):
                given[own.name.rstrip("_")] = list(value) if isinstance(value, tuple) else plain_value(value)
        given["options"] = {name: plain_value(value) for name, value in sorted(self.options.items())}
        if self.init_options:
            given["init_options"] = {name: plain_value(value) for name, value in sorted(self.init_options.items())}
        return given

    def _bound(self) -> Parts:
        """The method's own parts; an origin that is its option is given to it as one."""
        options = dict(self.options)
        if self.origin is not None and "origin" in self.declared.settings:
            options["origin"] = self.origin
        return self.declared.bound(options)

    def _with(self, parts: Parts) -> Parts:
        """Also what another method learns, by that method's objective."""
        if self.with_ is None:
            return parts
        other = find_adaptive(self.with_, where="--with")
        more = other.bound(bind(other, {}))
        if more.supervised:
            hint = f"`--method {other.name}` does, on a merged model that stays"
            raise UsageError(f"`{other.name}` learns from labels, this run does not", where="--with", hint=hint)
        learns: dict[str, Learnable] = {
            **{k: v for k, v in more.learns.items() if k not in parts.learns},
            **parts.learns,
        }
        rates = {**more.rates, **{name: parts.rates.get(name) for name in parts.learns}}
        if more.of(Masks) is not None and self.rank is None and isinstance(parts.components, Whole):
            parts = replace(parts, components=more.components)
        return replace(
            parts, learns=learns, objective=more.objective, on=more.on, filter=more.filter, updates=more.updates,
            batch_size=more.batch_size, rates=rates, refit=parts.refit or more.refit,
        )  # fmt: skip

    def _with_block(self, parts: Parts) -> Parts:
        """The block that is every task's own: another layer of it, or in place of the head; or another start."""
        block = parts.of(Block)
        own = block if isinstance(block, Block) else None
        if self.layer == "head" and (own is not None or parts.of(Heads) is None):
            hint = "--method heads solves for heads" if parts.origin == "init" else "--with tint adds heads to a method"
            raise UsageError(f"`{self.method}` does not learn heads as its own layer", where="--layer", hint=hint)
        if self.layer is not None and self.layer != "head":
            own = replace(own or Block(), layer=self.layer)
        if own is None:
            if self.block_start is not None:
                raise UsageError("this method has no block", where="--block-start", hint="--layer last gives it one")
            return parts
        own = replace(own, start=self.block_start) if self.block_start is not None else own
        if block is not None:
            return replace(parts, learns={**parts.learns, "block": own})
        learns: dict[str, Learnable] = {name: one for name, one in parts.learns.items() if not isinstance(one, Heads)}
        rates = {**parts.rates, **self._block_rates()}
        return replace(parts, learns={**learns, "block": own}, rates=rates)

    def _block_rates(self) -> dict[str, float | None]:
        """Rates of a block in place of the head, and of coefficients beside it: the reference code's, or slow ones."""
        published = {**self.declared.parity} if self.parity else {}
        return {
            "block": published.get("block", published.get("heads", BLOCK_RATE)),
            "coefficients": published.get("coefficients", BLOCK_RATE),
        }

    def _truncated(self, parts: Parts) -> Parts:
        """Of truncated task vectors, where a rank is given to a method that takes them whole."""
        if self.rank is None:
            return parts
        if parts.origin == "init" or not isinstance(parts.components, Whole):
            hint = "choose a method that combines whole task vectors, such as adamerging or symerge"
            raise UsageError(f"`{self.method}` has no rank to choose here", where="--rank", hint=hint)
        return replace(parts, components=Truncated(self.rank))

    def _check_projected(self, parts: Parts) -> None:
        """Projection is for coefficients that learn and are not clamped on the way, where ends have no gradient."""
        coefficients = parts.of(Coefficients)
        if not self.project or (isinstance(coefficients, Coefficients) and not coefficients.clamped):
            return
        what = "clamps coefficients already" if coefficients else "learns no coefficients"
        raise UsageError(f"this run {what}", where="--project", hint="leave --project out")

    def _check_entries(self, parts: Parts) -> None:
        """A mask over entries needs them: components have none."""
        if parts.of(Relaxed) is None or not isinstance(parts.components, Truncated):
            return
        hint = "leave it out: `--method adarank` learns which components count"
        where = "--with" if self.rank is None else "--rank"
        raise UsageError("a mask over entries is of whole task vectors, not of components", where=where, hint=hint)

    def _check_shaping(self, parts: Parts) -> None:
        """What shapes weights needs task vectors to combine, and masks need components."""
        shaping = [name for name, one in parts.learns.items() if isinstance(one, Coefficients | Masks | Relaxed)]
        if parts.origin == "init" and shaping:
            what = f"`{self.method}` leaves the encoder as it is: no {' or '.join(shaping)} can be learnt"
            hint = f"the other way round it works: --method {self.with_} --with {self.method}"
            raise UsageError(what, where="--with", hint=hint)
        if parts.shaped_by(Masks) is not None and not isinstance(parts.components, Truncated):
            what = f"masks are of singular components, which the trimmed task vectors of `{self.method}` do not have"
            raise UsageError(what, where="--with", hint="choose --method adamerging, or leave it out")

    def _check_updates(self, parts: Parts) -> None:
        """Without updates nothing is learnt but heads that are solved for: nobody asks for more by accident."""
        moved = [name for name, one in parts.learns.items() if not (isinstance(one, Heads) and one.start == "fitted")]
        if parts.iterations != 0 or self.iterations is not None or not moved:
            return
        given = {"--layer": self.layer, "--with": self.with_}
        where = next((flag for flag, value in given.items() if value is not None), "--heads-start")
        hint = "give --iterations too" + (f", or --method blocks --layer {self.layer}" if where == "--layer" else "")
        raise UsageError(f"`{self.method}` makes no updates: {', '.join(moved)} would stay", where=where, hint=hint)

    def _published(self, parts: Parts) -> Parts:
        """The reference codes' own choices."""
        if not self.declared.parity:
            hint = f"`taskmerge methods` says what is known of a method; {listed(_with_parity(), plain=True)} have some"
            what = f"no choices of a reference code are known for `{self.method}`"
            raise UsageError(what, where="--parity", hint=hint)
        published = dict(self.declared.parity)
        learns = dict(parts.learns)
        coefficients = learns.get("coefficients")
        if isinstance(coefficients, Coefficients):
            learns["coefficients"] = replace(coefficients, clamped=bool(published.pop("clamped", False)))
        rates = {**parts.rates, **{name: published.pop(name) for name in tuple(published) if name in parts.rates}}
        return replace(parts, learns=learns, rates=rates, **published)


def bind_given(declared: Adaptive, given: Mapping[str, object]) -> dict[str, Value]:
    """All options of a method, checked; texts are read as on the command line."""
    read = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in declared.settings:
            raise unknown_name(f"option of {declared.name}", key, declared.settings, where=_flag(key))
        setting = declared.settings[key]
        values = setting.read(value) if isinstance(value, str) else (setting.check(value),)
        if len(values) > 1:
            raise UsageError("an adaptation takes one value", where=_flag(key), hint="run it once for each")
        read[key] = values[0]
    return bind(declared, read)


def _with_parity() -> list[str]:
    """The methods whose reference codes' choices are known."""
    return [name for name, declared in adaptive_methods().items() if declared.parity]


def _with_heads(parts: Parts, start: HeadsStart) -> Parts:
    if parts.of(Heads) is None:
        hint = "`--with tint` adds heads to a method, `--refit-heads` fits them at the end"
        raise UsageError("this method learns no heads", where="--heads-start", hint=hint)
    return replace(parts, learns={**parts.learns, "heads": Heads(start=start)})


def _check_layer(layer: str | None) -> None:
    if layer is None or layer in LAYERS or layer.isdecimal():
        return
    raise unknown_name("layer", layer, LAYERS, where="--layer")


def _check_whole(name: str, value: object, *, least: int | None = None) -> None:
    """Refuses what is no whole number, or too small."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{value} is no whole number", where=_flag(name), hint=f"such as {max(1, least or 0)}")
    if least is not None and value < least:
        raise UsageError(f"{value} is out of range", where=_flag(name), hint=f"give {least} or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def short_of_flips(spec: AdaptSpec, parts: Parts, updates: int) -> str | None:
    """A warning where no mask bit can flip within the horizon: Adam moves a logit by about its rate an update."""
    if parts.of(Masks) is None:
        return None
    rate = spec.rates(parts, updates)["masks"]
    if updates * rate >= 0.1:
        return None
    return (
        f"{updates} updates at a rate of masks of {rate:g} move no logit from ±0.1 across 0: no bit can flip "
        f"(--mask-lr {mask_rate(updates):g} or more --iterations)"
    )
