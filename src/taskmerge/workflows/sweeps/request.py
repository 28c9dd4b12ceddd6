"""What a sweep is asked for: kinds, grids, data; texts become checked values, what is out of range a UsageError."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from taskmerge.errors import UsageError, unknown_name
from taskmerge.evaluation.workload import check_split, named_tasks
from taskmerge.experts.arguments import Arguments
from taskmerge.methods.options import Option, Setting
from taskmerge.numerics.rank import Rank
from taskmerge.specs.suite import Suite
from taskmerge.types import Note, unheard

Kind = Literal["rank", "coefficient", "routing", "subsets", "components", "landscape", "pairs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCORED = frozenset({"rank", "coefficient", "routing", "subsets", "pairs"})
"""Kinds whose scores need the split's own labels."""
LOSSES = frozenset({"components", "landscape"})
"""Kinds whose losses may be taken against the experts' predictions."""
Labels = Literal["auto", "true", "expert"]
Counted = Callable[[int, int], None]
"""Called with items encoded so far, and in all that are left to this run."""

RANKS = "0.01,0.02,0.04,0.08,0.16,0.24,0.32,0.48,0.64,1.0"
COEFFICIENTS = "0.1,0.2,0.3,0.5,0.75,1.0,1.5,2.0,2.5,3.0"
RANK = Rank("ratio", 0.08)
"""The rank of those points whose rank is not what varies: CART's own."""
BATCH = 64
_RANK = Setting("sweep_rank", Rank, None, Option("ranks of a sweep"))
_COEFFICIENT = Setting("sweep_coefficient", float, None, Option("coefficients of a sweep"))


def uncounted(done: int, total: int) -> None:
    """The `Counted` of those whom nobody watches."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """Sweeps over one suite's tasks.

    `inputs` are the experts by the names of tasks (none: the suite's); `merging` holds the keywords of `merge` that say
    how they are read (base, qkv, include, …). Points are stored in `folder`. `ranks` are all shares or all counts,
    ascending. `matrices` are globs of the matrices whose components are added one by one (none: two of the middle
    block). `labels` says what losses are taken against: the split's labels where it has any (`auto`), or else the
    experts' predictions.
    """

    suite: Suite
    kinds: tuple[Kind, ...]
    folder: Path
    inputs: Arguments = ()
    merging: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    split: str = "test"
    tasks: tuple[str, ...] | None = None
    limit: int | None = None
    seed: int = 0
    ranks: tuple[Rank, ...] = tuple(map(Rank.parse, RANKS.split(",")))
    coefficients: tuple[float, ...] = tuple(map(float, COEFFICIENTS.split(",")))
    matrices: tuple[str, ...] = ()
    labels: Labels = "auto"
    batch_size: int = BATCH
    device: str = "auto"
    threads: int | None = None
    cache: Path | None = None
    progress: Counted = uncounted
    note: Note = unheard

    def __post_init__(self) -> None:
        """Raises UsageError for kinds, ranks or coefficients that make no sweep."""
        if not self.kinds:
            raise UsageError("no kind of sweep is named", where="--sweep", hint=f"known: {', '.join(KINDS)}")
        if not self.ranks or not self.coefficients:
            raise UsageError("an empty grid has no points", where="--sweep-rank or --sweep-coefficient")
        if {rank.kind for rank in self.ranks} not in ({"ratio"}, {"count"}):
            what = f"the grid {', '.join(map(str, self.ranks))} has no order that holds for every matrix"
            raise UsageError(what, where="--sweep-rank", hint="give shares alone (0.04,0.08), or counts alone (4,8)")
        if list(self.ranks) != sorted(set(self.ranks), key=lambda rank: rank.value):
            raise UsageError("ranks ascend, each once", where="--sweep-rank")


def check_data(asked: SweepRequest) -> None:
    """Raises UsageError, from the suite alone, for tasks without the split, and for a split without the labels that are
    needed."""
    needed = bool(SCORED & {*asked.kinds}) or asked.labels == "true"
    for task in named_tasks(asked.suite, asked.tasks):
        check_split(task, asked.split, asked.suite)
        if needed and task.splits[asked.split].y is None:
            what = f"split `{asked.split}` of task `{task.name}` has no labels"
            hint = "name a labelled split with --split; losses (components, landscape) can do without"
            raise UsageError(what, where=task.splits[asked.split].place or None, hint=hint)


def kinds(said: str | Sequence[str]) -> tuple[Kind, ...]:
    """The kinds that a text names, in the order in which they are carried out."""
    names = [part.strip() for part in (said.split(",") if isinstance(said, str) else said)]
    for name in names:
        if name not in KINDS:
            raise unknown_name("sweep", name, KINDS, where="--sweep")
    return tuple(kind for kind in KINDS if kind in names)


def ranks(said: str) -> tuple[Rank, ...]:
    """The ranks of `0.04,0.08` or `0.1:1.0:0.1`, ascending, each once."""
    found = {value for value in _RANK.read(said) if isinstance(value, Rank)}
    return tuple(sorted(found, key=lambda rank: (rank.kind, rank.value)))


def coefficients(said: str) -> tuple[float, ...]:
    """The coefficients of `0.1,0.2` or `0.1:1.0:0.1`, ascending, each once."""
    return tuple(sorted({float(value) for value in _COEFFICIENT.read(said) if isinstance(value, int | float)}))
