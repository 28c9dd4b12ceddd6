"""`taskmerge.adapt`: what the command does, as one typed function."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch

from taskmerge.errors import UsageError
from taskmerge.experts.arguments import Arguments
from taskmerge.methods.adaptive import BlockStart, Filter, HeadsStart, Objective, On, Updates
from taskmerge.methods.options import Value
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names, Pairs, Size
from taskmerge.specs.merge import OnBuffer, OnMissing, Qkv, Svd
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note, unheard
from taskmerge.workflows.adapt_dry_run import DryRun
from taskmerge.workflows.adapt_dry_run import dry_run as measured
from taskmerge.workflows.adapt_report import AdaptReceipt
from taskmerge.workflows.adapt_request import adapt_requested
from taskmerge.workflows.adapt_seeds import Seeds, adapt_seeds
from taskmerge.workflows.adapted import AdaptRunning, adapt_asked
from taskmerge.workflows.auto import BUDGET, adapt_auto, candidate_requests
from taskmerge.workflows.auto_plan import AutoPlan, plan_auto

AUTO = "auto"
RUNNING = frozenset({
    "output", "overwrite", "resume", "keep_state", "device", "threads", "cache", "scores", "split", "note",
})  # fmt: skip
"""Keywords that do not shape the result."""
OWN = frozenset({"inputs", "suite", "seeds", "budget", "dry_run", "options", *RUNNING})
READERS = {
    **dict.fromkeys(("output", "cache"), read.path), "threads": read.threads, "device": read.spelled,
    **dict.fromkeys(("overwrite", "resume", "keep_state", "scores"), read.switch), "split": read.text,
    "note": read.function, "tasks": read.names, "train": read.names,
    "init": lambda value, where: str(read.path(value, where)),
}  # fmt: skip
"""What makes each of them of what people give."""


@overload
def adapt(
    inputs: Arguments = ..., *, dry_run: Literal[True], suite: Suite | str | Path | None = ...,
    method: str | None = ..., budget: int | None = ..., with_: str | None = ...,
    origin: Literal["base", "mean"] | None = ..., train: Names = ..., objective: Objective | None = ...,
    on: On | None = ..., filter: Filter | None = ..., updates: Updates | None = ..., layer: str | int | None = ...,
    block_start: BlockStart | None = ..., iterations: int | None = ..., batch_size: int | None = ...,
    lr: float | None = ..., head_lr: float | None = ..., mask_lr: float | None = ..., project: bool | None = ...,
    parity: bool | None = ..., stop: Literal["agreement"] | None = ..., held_out: float | None = ...,
    every: int | None = ..., watch: int | None = ..., amp: Literal["bf16"] | None = ..., init: Location = ...,
    heads_start: HeadsStart | None = ..., refit_heads: bool | None = ..., head_pull: float | None = ...,
    head_temperature: float | None = ..., teacher_scale: float | None = ..., seed: int | None = ...,
    seeds: int | None = ..., adapt_split: str | None = ..., split: str | None = ..., tasks: Names = ...,
    limit: int | None = ...,
    base: Location = ..., qkv: Qkv | None = ..., also: Names = ..., include: Globs = ..., exclude: Globs = ...,
    keep_from: Pairs = ..., on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    strip_prefix: str | None = ..., map: Globs = ..., skip_input: Globs = ...,
    keep_base: bool | None = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., output: Location = ..., overwrite: bool | None = ..., resume: bool | None = ...,
    keep_state: bool | None = ..., device: str | torch.device | None = ..., threads: int | None = ...,
    max_memory: Size = ..., shard_size: Size = ..., cache: Location = ..., scores: bool | None = ...,
    note: Note | None = ..., **options: Value,
) -> DryRun | AutoPlan: ...  # fmt: skip


@overload
def adapt(
    inputs: Arguments = ..., *, seeds: int, suite: Suite | str | Path | None = ...,
    method: str | None = ..., budget: int | None = ..., with_: str | None = ...,
    origin: Literal["base", "mean"] | None = ..., train: Names = ..., objective: Objective | None = ...,
    on: On | None = ..., filter: Filter | None = ..., updates: Updates | None = ..., layer: str | int | None = ...,
    block_start: BlockStart | None = ..., iterations: int | None = ..., batch_size: int | None = ...,
    lr: float | None = ..., head_lr: float | None = ..., mask_lr: float | None = ..., project: bool | None = ...,
    parity: bool | None = ..., stop: Literal["agreement"] | None = ..., held_out: float | None = ...,
    every: int | None = ..., watch: int | None = ..., amp: Literal["bf16"] | None = ..., init: Location = ...,
    heads_start: HeadsStart | None = ..., refit_heads: bool | None = ..., head_pull: float | None = ...,
    head_temperature: float | None = ..., teacher_scale: float | None = ..., seed: int | None = ...,
    adapt_split: str | None = ..., split: str | None = ..., tasks: Names = ..., limit: int | None = ...,
    base: Location = ..., qkv: Qkv | None = ..., also: Names = ..., include: Globs = ..., exclude: Globs = ...,
    keep_from: Pairs = ..., on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    strip_prefix: str | None = ..., map: Globs = ..., skip_input: Globs = ...,
    keep_base: bool | None = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., output: Location = ..., overwrite: bool | None = ..., resume: bool | None = ...,
    keep_state: bool | None = ..., device: str | torch.device | None = ..., threads: int | None = ...,
    max_memory: Size = ..., shard_size: Size = ..., cache: Location = ..., scores: bool | None = ...,
    dry_run: Literal[False] | None = ..., note: Note | None = ..., **options: Value,
) -> Seeds: ...  # fmt: skip


@overload
def adapt(
    inputs: Arguments = ..., *, suite: Suite | str | Path | None = ...,
    method: str | None = ..., budget: int | None = ..., with_: str | None = ...,
    origin: Literal["base", "mean"] | None = ..., train: Names = ..., objective: Objective | None = ...,
    on: On | None = ..., filter: Filter | None = ..., updates: Updates | None = ..., layer: str | int | None = ...,
    block_start: BlockStart | None = ..., iterations: int | None = ..., batch_size: int | None = ...,
    lr: float | None = ..., head_lr: float | None = ..., mask_lr: float | None = ..., project: bool | None = ...,
    parity: bool | None = ..., stop: Literal["agreement"] | None = ..., held_out: float | None = ...,
    every: int | None = ..., watch: int | None = ..., amp: Literal["bf16"] | None = ..., init: Location = ...,
    heads_start: HeadsStart | None = ..., refit_heads: bool | None = ..., head_pull: float | None = ...,
    head_temperature: float | None = ..., teacher_scale: float | None = ..., seed: int | None = ...,
    seeds: None = ..., adapt_split: str | None = ..., split: str | None = ..., tasks: Names = ...,
    limit: int | None = ...,
    base: Location = ..., qkv: Qkv | None = ..., also: Names = ..., include: Globs = ..., exclude: Globs = ...,
    keep_from: Pairs = ..., on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    strip_prefix: str | None = ..., map: Globs = ..., skip_input: Globs = ...,
    keep_base: bool | None = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., output: Location = ..., overwrite: bool | None = ..., resume: bool | None = ...,
    keep_state: bool | None = ..., device: str | torch.device | None = ..., threads: int | None = ...,
    max_memory: Size = ..., shard_size: Size = ..., cache: Location = ..., scores: bool | None = ...,
    dry_run: Literal[False] | None = ..., note: Note | None = ..., **options: Value,
) -> AdaptReceipt: ...  # fmt: skip


def adapt(
    inputs: Arguments = (), *, suite: Suite | str | Path | None = None,
    method: str | None = None, budget: int | None = None, with_: str | None = None,
    origin: Literal["base", "mean"] | None = None, train: Names = None, objective: Objective | None = None,
    on: On | None = None, filter: Filter | None = None, updates: Updates | None = None, layer: str | int | None = None,
    block_start: BlockStart | None = None, iterations: int | None = None, batch_size: int | None = None,
    lr: float | None = None, head_lr: float | None = None, mask_lr: float | None = None, project: bool | None = None,
    parity: bool | None = None, stop: Literal["agreement"] | None = None, held_out: float | None = None,
    every: int | None = None, watch: int | None = None, amp: Literal["bf16"] | None = None, init: Location = None,
    heads_start: HeadsStart | None = None, refit_heads: bool | None = None, head_pull: float | None = None,
    head_temperature: float | None = None, teacher_scale: float | None = None, seed: int | None = None,
    seeds: int | None = None, adapt_split: str | None = None, split: str | None = None, tasks: Names = None,
    limit: int | None = None,
    base: Location = None, qkv: Qkv | None = None, also: Names = None, include: Globs = None, exclude: Globs = None,
    keep_from: Pairs = None, on_missing: OnMissing | None = None, on_buffer: OnBuffer | None = None,
    strip_prefix: str | None = None, map: Globs = None, skip_input: Globs = None,
    keep_base: bool | None = None, allow_merged: bool | None = None, allow_pickle: bool | None = None,
    dtype: str | torch.dtype | None = None, compute_dtype: Literal["float32", "float64"] | None = None,
    svd: Svd | None = None, output: Location = None, overwrite: bool | None = None, resume: bool | None = None,
    keep_state: bool | None = None, device: str | torch.device | None = None, threads: int | None = None,
    max_memory: Size = None, shard_size: Size = None, cache: Location = None, scores: bool | None = None,
    dry_run: bool | None = None, note: Note | None = None, **options: Value,
) -> AdaptReceipt | Seeds | DryRun | AutoPlan:  # fmt: skip
    """Adapts a merge of a suite's experts on unlabelled items, and writes a folder (`adapted-METHOD/`).

    Every keyword is the command's option of that name (`taskmerge adapt --help`), read as there; None leaves it to the
    method. What no keyword is called is an option of the method (`rank=0.16`). `inputs` are the experts' files in place
    of the suite's. `method="auto"` tries several methods within `budget`; `seeds` runs so many seeds (`Seeds`);
    `dry_run=True` checks everything, measures two updates and returns the plan. `note` hears of notes. No label is
    read, except to score the result on `split` at the end (unless `scores=False`). Raises a TaskmergeError.
    """
    call = locals()
    said, running = read.read_keywords(READERS, read.given(call, OWN) | options), _running(call)
    loaded = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite) if suite else None)[0])
    if method == AUTO:
        if seeds is not None:
            raise UsageError("does not go with `auto`, which chooses once", where="--seeds", hint="name a method")
        del said["method"]
        return _auto(loaded, running, inputs, BUDGET if budget is None else budget, said, plan=bool(dry_run))
    if budget is not None:
        raise UsageError("says nothing without method `auto`", where="--budget", hint="`iterations` is the horizon")
    asked = adapt_requested(loaded, inputs, said)
    if dry_run:
        return measured(asked, running)
    return adapt_asked(asked, running) if seeds is None else adapt_seeds(asked, running, read.whole(seeds, "--seeds"))


def _auto(
    suite: Suite, running: AdaptRunning, inputs: Arguments, budget: int, said: dict[str, Any], *, plan: bool
) -> AdaptReceipt | AutoPlan:
    """Candidates one after the other, and which of them is kept; or what they would cost."""
    budget, seed = read.whole(budget, "--budget"), read.whole(said.pop("seed", 0), "--seed")
    if plan:
        return plan_auto(candidate_requests(suite, inputs, budget, seed, options=said), running, budget)
    return adapt_auto(suite, running, inputs, budget=budget, seed=seed, **said)


def _running(said: Mapping[str, Any]) -> AdaptRunning:
    """Where it goes, what it may cost, who hears of it."""
    given = {name: said[name] for name in RUNNING}
    return AdaptRunning(**{"note": unheard, **read.read_keywords(READERS, given)})
