"""`taskmerge.sweep`: merges of a suite's experts at many points, each scored; what `spectrum --sweep` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from taskmerge.errors import UsageError, unknown_name
from taskmerge.experts.arguments import Arguments, checked
from taskmerge.numerics.rank import Rank
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note, unheard
from taskmerge.workflows.adapt_request import MERGING
from taskmerge.workflows.sweeps.request import (
    BATCH,
    COEFFICIENTS,
    RANKS,
    Counted,
    Labels,
    SweepRequest,
    check_data,
    coefficients,
    kinds,
    ranks,
    uncounted,
)
from taskmerge.workflows.sweeps.sweep import SweepReport, sweep_asked


def sweep(
    sweep: str | Sequence[str], *, suite: Suite | str | Path, output: str | Path, inputs: Arguments = (),
    split: str = "test", tasks: Names = None, limit: int | None = None, seed: int = 0,
    sweep_rank: str | Sequence[str | float | Rank] = RANKS, sweep_coefficient: str | Sequence[float] = COEFFICIENTS,
    sweep_matrix: Globs = None, loss_labels: str = "auto", batch_size: int = BATCH,
    device: str = "auto", threads: int | None = None, cache: Location = None, progress: Counted = uncounted,
    note: Note = unheard, **merging: Any,
) -> SweepReport:  # fmt: skip
    """Merges experts at many points and scores each on a suite's split, one encoder in memory.

    `sweep` names kinds: rank, coefficient, routing, subsets, components, landscape, pairs. Points are stored in
    `output` as they are found; a run that was stopped goes on there. `inputs` are the experts by the suite's names of
    tasks (none: the suite's own). `sweep_rank` and `sweep_coefficient` are grids, `sweep_matrix` globs of the matrices
    whose components are added, `loss_labels` what losses are taken against. `merging` are keywords of `merge` that say
    how experts are read: base, qkv, also, include, exclude and their like. `progress` hears of items encoded, and in
    all.

    Raises a TaskmergeError: UsageError for grids out of range, kinds that these tasks are too few for, labels that are
    not there, and for unknown keywords; whatever reading suites, experts and data raises; BadOutput where points cannot
    be stored.
    """
    return sweep_asked(sweep_requested(
        sweep, suite=suite, output=output, inputs=inputs, split=split, tasks=tasks, limit=limit, seed=seed,
        sweep_rank=sweep_rank, sweep_coefficient=sweep_coefficient, sweep_matrix=sweep_matrix, loss_labels=against,
        batch_size=batch_size, device=device, threads=threads, cache=cache, progress=progress, note=note, **merging,
    ))  # fmt: skip


def sweep_requested(
    sweep: str | Sequence[str], *, suite: Suite | str | Path, output: str | Path, inputs: Arguments = (),
    split: str = "test", tasks: Names = None, limit: int | None = None, seed: int = 0,
    sweep_rank: str | Sequence[str | float | Rank] = RANKS, sweep_coefficient: str | Sequence[float] = COEFFICIENTS,
    sweep_matrix: Globs = None, loss_labels: str = "auto", batch_size: int = BATCH,
    device: str = "auto", threads: int | None = None, cache: Location = None, progress: Counted = uncounted,
    note: Note = unheard, **merging: Any,
) -> SweepRequest:  # fmt: skip
    """The request that keywords of `sweep` make, checked as far as the suite's file tells."""
    for name in merging:
        if name not in MERGING:
            raise unknown_name("keyword", name, MERGING, where="sweep")
    against = next((one for one in get_args(Labels) if one == loss_labels), None)
    if against is None:
        raise unknown_name("labels", str(loss_labels), get_args(Labels), where="--loss-labels")
    if limit is not None:
        read.items(limit, "--limit")
    whole = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite))[0])
    folder = read.path(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, and sweeps write a folder", where=str(folder), hint="name another with -o")
    asked = SweepRequest(
        suite=whole, kinds=kinds(sweep), folder=folder, inputs=checked(inputs), merging=_said(merging), split=split,
        tasks=None if tasks is None else read.names(tasks, "--tasks"), limit=limit, seed=read.whole(seed, "--seed"),
        ranks=ranks(_text(sweep_rank)), coefficients=coefficients(_text(sweep_coefficient)),
        matrices=read.globs(sweep_matrix or (), "--sweep-matrix"), labels=against,
        batch_size=read.items(batch_size, "--batch-size"), device=device, threads=threads,
        cache=None if cache is None else Path(cache), progress=progress, note=note,
    )  # fmt: skip
    check_data(asked)
    return asked


def _said(merging: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in merging.items() if value is not None}


def _text(grid: str | Sequence[object]) -> str:
    """A grid as the command line has it."""
    return grid if isinstance(grid, str) else ",".join(map(str, grid))
