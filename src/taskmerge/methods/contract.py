"""What a merging method declares about itself: `@method` on one function on tensors, its kernel.

`kernel.py` says what a kernel is handed and gives back, `options.py` how its options are declared. The engine
subtracts and adds the origin, up-casts, casts back and checks finiteness; a kernel does none of it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from taskmerge.methods.checks import check_declaration
from taskmerge.methods.kernel import Factor, Kernel, Shared, Statistic, first_parameter, takes
from taskmerge.methods.options import Options, Setting, Value, declared_settings
from taskmerge.numerics import durations
from taskmerge.types import Space

Reads = Literal["elements", "tensor", "matrix"]
Gives = Literal["merged", "task_vectors"]
K = TypeVar("K", bound=Kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """What a method promises, or doesn't, beyond what every method does; `taskmerge.testing` holds it to its word."""

    symmetric: bool = True
    """The order of the experts is irrelevant, if weights go with them."""

    homogeneous: bool = True
    """Scaled rows give a result that is scaled as much."""

    shifts: bool = True
    """Of methods that read no base: experts that are all shifted give a shifted result."""

    transposes: bool = True
    """Of methods on matrices: transposed matrices give the transposed result."""

    absent_at_zero: bool = True
    """Of weighted methods: what an expert of weight zero holds is irrelevant."""

    equal_experts: Options | None = None
    """Options under which equal experts give that expert; None where no options do."""

    zero_task: Options | None = None
    """Options under which one more expert, equal to the base, changes nothing; None where no options do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a method takes, by which `--dry-run` predicts its time; nothing else depends on it."""

    sweeps: float = 4.0
    """How often kernel and first passes together go over every number of the tasks' rows."""

    passes: int | Callable[[Options], int] = 0
    """How often first passes read the whole model."""

    matrix: Callable[[int, int, int, Options], float] | None = None
    """Of methods on matrices: seconds (`numerics/durations.py`) for the matrices [m, n] of so many tasks, without what
    grid points share. Without it, all components of every matrix are taken to be needed."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method's declaration: everything that engine, command line, docs and tests know about it.

    The fields are explained under `method`; `name`, `kernel` and `settings` come from the function itself.
    """

    name: str
    kernel: Kernel
    settings: Mapping[str, Setting]
    space: Space
    reads: Reads | Callable[[Options], Reads]
    title: str
    formula: str
    paper: str
    gives: Gives = "merged"
    elsewhere: Kernel | None = None
    statistic: Statistic | None = None
    shared: Shared | None = None
    factor: Factor | None = None
    tasks: tuple[int, int | None] = (1, None)
    notes: tuple[str, ...] = ()
    note_for: Mapping[int, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    laws: Laws = Laws()
    work: Work = Work()
    internal: bool = False

    @property
    def summary(self) -> str:
        """The first line of the kernel's docstring."""
        return (inspect.getdoc(self.kernel) or "").partition("\n")[0]

    @property
    def package(self) -> str:
        """The package that it comes from."""
        return self.kernel.__module__.partition(".")[0]

    @property
    def weighted(self) -> bool:
        return takes(self.kernel, "weights")

    @property
    def random(self) -> bool:
        return takes(self.kernel, "uniform")

    @property
    def needs_base(self) -> bool:
        return self.space == "delta"

    @property
    def learned(self) -> bool:
        """Whether it runs what adaptation has learnt, and nothing else."""
        return any(takes(kernel, "learned") for kernel in (self.kernel, self.elsewhere) if kernel)

    @property
    def on_matrices(self) -> bool:
        """Whether its kernel is handed matrices. Under options that read none, `elsewhere` takes every tensor."""
        return first_parameter(self.kernel) == "matrices"

    def granularity(self, options: Options) -> Reads:
        """What the kernel reads at a time under these options."""
        return self.reads(options) if callable(self.reads) else self.reads

    def first_passes(self, options: Options) -> int:
        """How often the whole model is read before it is merged, under these options."""
        return self.work.passes(options) if callable(self.work.passes) else self.work.passes

    def matrix_seconds(self, m: int, n: int, tasks: int, options: Options) -> float:
        """What the tasks' matrices [m, n] take on one core of the machine that `numerics/durations.py` is of."""
        if self.work.matrix is not None:
            return self.work.matrix(m, n, tasks, options)
        return durations.truncated(m, n, tasks, None)

    def defaults(self) -> dict[str, Value]:
        return {name: setting.default for name, setting in self.settings.items()}


def method(
    *,
    space: Space,
    reads: Reads | Callable[[Options], Reads],
    title: str,
    formula: str,
    paper: str,
    gives: Gives = "merged",
    elsewhere: Kernel | None = None,
    statistic: Statistic | None = None,
    shared: Shared | None = None,
    factor: Factor | None = None,
    tasks: tuple[int, int | None] = (1, None),
    notes: tuple[str, ...] = (),
    note_for: Mapping[int, str] | None = None,
    aliases: tuple[str, ...] = (),
    laws: Laws | None = None,
    work: Work | None = None,
    internal: bool = False,
) -> Callable[[K], K]:
    """Declares a function as the method of its name; the function itself comes back, with its declaration attached.

    What taskmerge cannot serve is refused on the spot: `BadDeclaration`, with the function's name and the parameter's.

    - `space`: what the rows are. `weight` θ_t; `delta` θ_t - θ₀, and the result is added to the base θ₀; `centred`
      θ_t - θ̄, and the result is added to the weighted mean θ̄.
    - `reads`: what the kernel sees at a time. `elements`: any slice of a tensor; `tensor`: a whole tensor, in its own
      shape; `matrix`: the matrices of tensors of class `linear`, and of what `--also` adds. Or a function from the
      options to one of them; where a kernel on matrices reads `elements`, `elsewhere` takes every tensor.
    - `title`, `formula` (one line of Unicode, `θ = …`) and `paper` (`arXiv:…` or `doi:…`): what the docs show. The
      first line of the function's docstring is its summary.
    - `gives="task_vectors"`: the kernel gives a new stack (DARE, Breadcrumbs) that `--then METHOD` merges.
    - `elsewhere`: of a method on matrices, the kernel for all other tensors; without one they stay at the origin.
    - `statistic`: a first pass over the whole model.
    - `shared`: the part of a kernel on matrices that grid points share.
    - `factor`: what `--lines` multiplies other methods' results by.
    - `tasks`: the fewest and the most experts it merges.
    - `notes`: where public codes differ from the paper, or this from them; no full stop.
    - `note_for`: a number of experts, and what a merge of just so many should be told.
    - `aliases`: what other tools call it. Asking for one of them names this method.
    - `laws`: what the shared tests may expect of it.
    - `work`: what it takes, for predictions of time.
    - `internal`: no list shows it; other commands' files name it in their recipes.
    """

    def describe(kernel: K) -> K:
        name = getattr(kernel, "__name__", type(kernel).__name__)
        declared = Method(
            name=name, kernel=kernel, settings=declared_settings(kernel, name), space=space, reads=reads, title=title,
            formula=formula, paper=paper, gives=gives, elsewhere=elsewhere, statistic=statistic, shared=shared,
            factor=factor, tasks=tasks, notes=notes, note_for=note_for or {}, aliases=aliases, laws=laws or Laws(),
            work=work or Work(), internal=internal,
        )  # fmt: skip
        check_declaration(declared)
        setattr(kernel, "declaration", declared)  # noqa: B010  mypy knows no attributes of functions
        return kernel

    return describe


def declaration(kernel: Kernel) -> Method:
    """The declaration that `@method` attached to a kernel."""
    declared = getattr(kernel, "declaration", None)
    if not isinstance(declared, Method):
        raise TypeError(f"{kernel!r} is not declared with @method")
    return declared
