"""`taskmerge.sweep`: merges of a suite's experts at many points, each scored; what `spectrum --sweep` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from taskmerge.errors import UsageError, unknown_name
from taskmerge.experts.arguments import Arguments, checked
from taskmerge.numerics.rank import Rank
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names, Size
from taskmerge.specs.merge import OnMissing, Qkv
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note
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
)
from taskmerge.workflows.sweeps.sweep import SweepReport, sweep_asked

OWN = frozenset({"sweep", "suite", "output"})
READERS: Mapping[str, read.Reader] = {
    "split": read.text, "tasks": read.names, "limit": read.items, "seed": read.whole, "batch_size": read.items,
    "device": read.spelled, "threads": read.threads, "cache": read.path, "progress": read.function,
    "note": read.function,
}  # fmt: skip
"""What makes values of a request of what people give."""


def sweep(
    sweep: str | Sequence[str], *, suite: Suite | str | Path, output: str | Path, inputs: Arguments = (),
    split: str = "test", tasks: Names = None, limit: int | None = None, seed: int = 0,
    sweep_rank: str | Sequence[str | float | Rank] = RANKS, sweep_coefficient: str | Sequence[float] = COEFFICIENTS,
    sweep_matrix: Globs = None, loss_labels: Labels = "auto", batch_size: int = BATCH,
    device: str | torch.device = "auto", threads: int | None = None, max_memory: Size = None, cache: Location = None,
    base: Location = None, keep_base: bool | None = None, also: Names = None, qkv: Qkv | None = None,
    include: Globs = None, exclude: Globs = None, on_missing: OnMissing | None = None, strip_prefix: str | None = None,
    map: Globs = None, skip_input: Globs = None, allow_merged: bool | None = None, allow_pickle: bool | None = None,
    progress: Counted | None = None, note: Note | None = None,
) -> SweepReport:  # fmt: skip
    """Merges experts at many points and scores each on a suite's split, one encoder in memory.

    `sweep` names kinds: rank, coefficient, routing, subsets, components, landscape, pairs. Points are stored in
    `output` as they are found; a run that was stopped goes on there. `inputs` are the experts by the suite's names of
    tasks (none: the suite's own). `sweep_rank` and `sweep_coefficient` are grids, `sweep_matrix` globs of the matrices
    whose components are added, `loss_labels` what losses are taken against. How experts are read (`base`, `qkv` and
    what follows) is said as for `merge`. `progress` hears of items encoded, and in all.

    Raises a TaskmergeError: UsageError for grids out of range, kinds that these tasks are too few for, and labels that
    are not there; whatever reading suites, experts and data raises; BadOutput where points cannot be stored.
    """
    return sweep_asked(sweep_requested(sweep, suite, output, read.given(locals(), OWN)))


def sweep_requested(
    sweep: str | Sequence[str], suite: Suite | str | Path, output: str | Path, keywords: Mapping[str, Any]
) -> SweepRequest:
    """The request that the other keywords of `sweep` make, checked as far as the suite's file tells."""
    against = next((one for one in get_args(Labels) if one == keywords.get("loss_labels", "auto")), None)
    if against is None:
        raise unknown_name("labels", str(keywords["loss_labels"]), get_args(Labels), where="--loss-labels")
    folder = read.path(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, and sweeps write a folder", where=str(folder), hint="name another with -o")
    asked = SweepRequest(
        suite=suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite))[0]), kinds=kinds(sweep),
        folder=folder, inputs=checked(keywords.get("inputs", ())), labels=against,
        ranks=ranks(_grid(keywords.get("sweep_rank", RANKS))),
        coefficients=coefficients(_grid(keywords.get("sweep_coefficient", COEFFICIENTS))),
        matrices=read.globs(keywords.get("sweep_matrix", ()), "--sweep-matrix"),
        merging={name: value for name, value in keywords.items() if name in MERGING},
        **{name: READERS[name](value, read.flag_of(name)) for name, value in keywords.items() if name in READERS},
    )  # fmt: skip
    check_data(asked)
    return asked


def _grid(said: str | Sequence[object]) -> str:
    """A grid as the command line has it."""
    return said if isinstance(said, str) else ",".join([str(value) for value in said])
