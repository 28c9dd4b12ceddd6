"""What a method that adapts on unlabelled data declares: `@adaptive` on a function from its options to frozen parts.

The loop (`adaptation/loop.py`) reads the parts and never asks for a method's name. A part is replaced by the option of
its name: `--origin`, `--train`, `--objective`, `--filter`, `--updates`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from taskmerge.errors import UsageError
from taskmerge.methods.options import BadDeclaration, Setting, Value, declared_settings
from taskmerge.numerics.rank import Rank

Origin = Literal["base", "mean", "init"]
Updates = Literal["joint", "sequential"]
Filter = Literal["none", "code", "paper"]
Layout = Literal["tensor", "task"]
HeadsStart = Literal["given", "fitted", "random"]
BlockStart = Literal["merged", "expert"]
Objective = Literal["entropy", "self", "soft", "l1", "smooth_l1", "l2", "cosine", "kl", "js"]
On = Literal["outputs", "features"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MANY_TASKS = 14  # from there on the papers start from 0.1 instead of 0.3


# --- what weights are composed of ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole:
    """D_t is the task vector itself."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """On matrices D_t = SVD_k of the task matrix, k by `rank`; elsewhere the task vector itself."""

    rank: Rank


@dataclass(frozen=True, slots=True)
class Trimmed:
    """D_t keeps the entries of the task vector that TIES' trimming and sign election leave (`density` of the model)."""

    density: float


Components = Whole | Truncated | Trimmed


# --- what is learnt --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """λ, one a task and tensor, or one a task. `start` None: 0.3 (0.1 from 14 tasks on), and 1.0 for CART's vectors.

    `clamped` puts them into [0, 1] in the forward pass, as the reference codes do: outside there is no gradient.
    """

    start: float | None = None
    layout: Layout = "tensor"
    clamped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """b = 1[β > 0], one bit a singular component; backward through σ(β / temperature). Components within `kept` start
    at β = +0.1, the others at -0.1 (AdaRank)."""

    kept: Rank = Rank("ratio", 1.0)
    temperature: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """One mask over the entries of every tensor, shared by the tasks, divided by its mean over the tensor (Tang et al.,
    Concrete Subspace Learning). Every update draws it from the concrete distribution σ((logit + noise) / temperature);
    what is written is one draw at temperature 0, bits. Where all logits of a tensor are equal, as at their `start`,
    there is no mask.
    """

    temperature: float = 0.5
    start: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Every task's own head: from the suite's, from one fitted to convergence, or from random weights."""

    start: HeadsStart = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of the encoder becomes every task's own: an index as in tensor names, or `first`, `middle`, `last`.

    It starts at the merged weights, or at its expert's own; coefficients that are learnt beside it shape all other
    tensors only.
    """

    layer: str = "last"
    start: BlockStart = "merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A small module on each task's features, by the name that `models/adapters.py` knows it by; `size` is its width,
    `penalty` weighs what the module adds to the loss."""

    kind: Literal["surgery", "probabilistic"]
    size: int
    penalty: float = 0.0


Learnable = Coefficients | Masks | Relaxed | Heads | Block | Adapter
Learns = Mapping[str, Learnable]
"""What is learnt, by the name under which `--train` chooses it and learning rates are given."""


# --- the parts of a method -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A method, taken apart. `origin` is what components are added to: the base, the experts' mean, or (`init`) a
    merged checkpoint as it is. `rates` are Adam's learning rates by learnable (None: depends on the horizon).

    `fixed` coefficients and masks shape weights too, and stay where they start. `on` says what objectives between
    model and expert compare. `iterations` None: one pass over the items of the largest task. `refit` fits heads to
    convergence in the end. `supervised` methods need labels.
    """

    learns: Learns
    fixed: Learns = field(default_factory=dict)
    origin: Origin = "base"
    components: Components = field(default_factory=Whole)
    objective: Objective = "entropy"
    on: On = "outputs"
    filter: Filter = "none"
    updates: Updates = "joint"
    iterations: int | None = 200
    batch_size: int = 16
    rates: Mapping[str, float | None] = field(default_factory=lambda: dict(RATES))
    refit: bool = False
    supervised: bool = False

    def of(self, kind: type[Learnable]) -> Learnable | None:
        """The learnable of a kind, if it is among those that are learnt."""
        return next((one for one in self.learns.values() if isinstance(one, kind)), None)

    def shaped_by(self, kind: type[Learnable]) -> Learnable | None:
        """The one of a kind that shapes weights, whether it is learnt or fixed."""
        return self.of(kind) or next((one for one in self.fixed.values() if isinstance(one, kind)), None)

    @property
    def shapes_weights(self) -> bool:
        """Whether merged weights change while it learns."""
        return any(isinstance(one, Coefficients | Masks | Relaxed) for one in self.learns.values())

    @property
    def per_task(self) -> bool:
        """Whether tasks get parts of their own besides the shared encoder."""
        return any(isinstance(one, Heads | Block | Adapter) for one in self.learns.values())

    def trained(self, names: tuple[str, ...]) -> "Parts":
        """The same where these alone are learnt (`both`: coefficients and masks); what shapes weights stays, fixed.

        A relaxed mask goes: before it learns there is none.
        """
        wanted = {own for name in names for own in (("coefficients", "masks") if name == "both" else (name,))}
        if strangers := sorted(wanted - self.learns.keys()):
            hint = f"it learns {', '.join(self.learns)}"
            raise UsageError(f"`{strangers[0]}` is not learnt by this method", where="--train", hint=hint)
        left = {name: one for name, one in self.learns.items() if name not in wanted}
        return replace(
            self, learns={name: one for name, one in self.learns.items() if name in wanted},
            fixed={name: one for name, one in left.items() if isinstance(one, Coefficients | Masks)},
        )  # fmt: skip


RATES: Mapping[str, float | None] = MappingProxyType(
    {"coefficients": 1e-3, "masks": None, "relaxed": 1e-3, "heads": 1e-2, "block": 1e-3, "adapter": 1e-3}
)


def usual_start(parts: Parts, tasks: int) -> float:
    """Where coefficients start if nobody says: the papers' values."""
    coefficients = parts.shaped_by(Coefficients)
    if isinstance(coefficients, Coefficients) and coefficients.start is not None:
        return coefficients.start
    if parts.origin == "mean" and isinstance(parts.components, Truncated):
        return 1.0
    return 0.3 if tasks < MANY_TASKS else 0.1


def mask_rate(updates: int) -> float:
    """The default learning rate of masks: Adam moves β by about that much an update, from 0.1."""
    return max(1e-3, 1 / max(updates, 1))


# --- declarations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """A declaration: everything that loop, command line, docs and tests know about a method."""

    name: str
    parts: Callable[..., Parts]
    settings: Mapping[str, Setting]
    title: str
    formula: str
    paper: str
    notes: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parity: Mapping[str, Any] = field(default_factory=dict)
    unpublished: bool = False

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.parts) or "").partition("\n")[0]

    def bound(self, options: Mapping[str, Value]) -> Parts:
        """The parts under these options, which are checked already."""
        return self.parts(**options)


F = TypeVar("F", bound=Callable[..., Parts])


def adaptive(
    *, title: str, formula: str, paper: str, notes: tuple[str, ...] = (), aliases: tuple[str, ...] = (),
    parity: Mapping[str, Any] | None = None, unpublished: bool = False,
) -> Callable[[F], F]:  # fmt: skip
    """Declares a function from options to `Parts` as the adaptive method of its name; the function comes back as it is.

    `title`, `formula` (one line of Unicode) and `paper` (`arXiv:…` or `doi:…`) are what the docs show, the first line
    of the docstring is the summary, `notes` say where public codes differ. `parity`
    is what `--parity` sets as they do: fields of `Parts`, rates by learnable, `clamped`. `unpublished` methods are of
    this project.
    Raises `BadDeclaration` for a function that cannot be served.
    """

    def describe(function: F) -> F:
        name = function.__name__
        settings = declared_settings(function, name)
        strangers = inspect.signature(function).parameters.keys() - settings.keys()
        if strangers:
            raise BadDeclaration(name, "every parameter is an option", sorted(strangers)[0])
        declared = Adaptive(
            name=name, parts=function, settings=settings, title=title, formula=formula, paper=paper, notes=notes,
            aliases=aliases, parity=parity or {}, unpublished=unpublished,
        )  # fmt: skip
        setattr(function, "declaration", declared)  # noqa: B010  mypy knows no attributes of functions
        return function

    return describe
