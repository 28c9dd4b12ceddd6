"""`taskmerge.merge`: what the command does, as one typed function; files or state dicts in, files or tensors out."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from taskmerge.errors import TaskmergeWarning, UsageError
from taskmerge.evaluation.label_free import ADAPT
from taskmerge.experts.arguments import Arguments, State, checked
from taskmerge.merging.in_memory import merge_in_memory
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.planned import MergePlan, plan_merge
from taskmerge.merging.prepare import keeps_results
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import Request, requested
from taskmerge.methods.options import Grid
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names, Pairs, Size
from taskmerge.specs.load import load_weights
from taskmerge.specs.merge import OnBuffer, OnMissing, Qkv, Svd
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note, unheard
from taskmerge.workflows.chosen_merge import Judging, carry_out_choice
from taskmerge.workflows.rebuild import carry_out_rebuilding, check_alone, rebuilding

Counted = Callable[[int, int], None] | None
Base = str | Path | State | None
OWN = frozenset({
    "inputs", "suite", "recipe", "from_", "task", "coefficients", "choose", "adapt_split", "limit", "dry_run", "note",
    "options",
})  # fmt: skip
"""Keywords of `merge` that are none of the merge itself."""


@overload
def merge(
    inputs: Arguments = ..., *, dry_run: Literal[True],
    method: str | None = ..., then: str | None = ..., lines: bool | None = ...,
    weights: Mapping[str, float] | None = ..., coefficients: Location = ..., also: Names = ..., qkv: Qkv | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., seed: int | None = ..., recipe: str | Path | Mapping[str, Any] | None = ...,
    from_: Location = ..., task: str | None = ..., base: Base = ..., suite: Suite | str | Path | None = ...,
    keep_base: bool | None = ..., include: Globs = ..., exclude: Globs = ..., keep_from: Pairs = ...,
    on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    heads: Literal["refuse", "keep"] | None = ..., strip_prefix: str | None = ..., map: Globs = ...,
    skip_input: Globs = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    choose: str | None = ..., adapt_split: str | None = ..., limit: int | None = ..., output: Location = ...,
    config_from: str | None = ..., tokenizer_from: str | None = ..., with_code: bool | None = ...,
    overwrite: bool | None = ..., as_adapter: bool | None = ..., adapter_rank: int | None = ..., shard_size: Size = ...,
    device: str | torch.device | None = ..., threads: int | None = ..., max_memory: Size = ...,
    digests: bool | None = ..., progress: Counted = ..., note: Note | None = ..., **options: Grid,
) -> MergePlan: ...  # fmt: skip


@overload
def merge(  # type: ignore[overload-overlap]  # with an output, state dicts are written to it
    inputs: Mapping[str, State], *, output: None = ...,
    method: str | None = ..., then: str | None = ..., lines: bool | None = ...,
    weights: Mapping[str, float] | None = ..., coefficients: Location = ..., also: Names = ..., qkv: Qkv | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., seed: int | None = ..., recipe: str | Path | Mapping[str, Any] | None = ...,
    from_: Location = ..., task: str | None = ..., base: Base = ..., suite: Suite | str | Path | None = ...,
    keep_base: bool | None = ..., include: Globs = ..., exclude: Globs = ..., keep_from: Pairs = ...,
    on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    heads: Literal["refuse", "keep"] | None = ..., strip_prefix: str | None = ..., map: Globs = ...,
    skip_input: Globs = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    choose: str | None = ..., adapt_split: str | None = ..., limit: int | None = ...,
    config_from: str | None = ..., tokenizer_from: str | None = ..., with_code: bool | None = ...,
    overwrite: bool | None = ..., as_adapter: bool | None = ..., adapter_rank: int | None = ..., shard_size: Size = ...,
    device: str | torch.device | None = ..., threads: int | None = ..., max_memory: Size = ...,
    digests: bool | None = ..., dry_run: Literal[False] | None = ..., progress: Counted = ..., note: Note | None = ...,
    **options: Grid,
) -> dict[str, Tensor]: ...  # fmt: skip


@overload
def merge(
    inputs: Arguments = ..., *,
    method: str | None = ..., then: str | None = ..., lines: bool | None = ...,
    weights: Mapping[str, float] | None = ..., coefficients: Location = ..., also: Names = ..., qkv: Qkv | None = ...,
    dtype: str | torch.dtype | None = ..., compute_dtype: Literal["float32", "float64"] | None = ...,
    svd: Svd | None = ..., seed: int | None = ..., recipe: str | Path | Mapping[str, Any] | None = ...,
    from_: Location = ..., task: str | None = ..., base: Base = ..., suite: Suite | str | Path | None = ...,
    keep_base: bool | None = ..., include: Globs = ..., exclude: Globs = ..., keep_from: Pairs = ...,
    on_missing: OnMissing | None = ..., on_buffer: OnBuffer | None = ...,
    heads: Literal["refuse", "keep"] | None = ..., strip_prefix: str | None = ..., map: Globs = ...,
    skip_input: Globs = ..., allow_merged: bool | None = ..., allow_pickle: bool | None = ...,
    choose: str | None = ..., adapt_split: str | None = ..., limit: int | None = ..., output: Location = ...,
    config_from: str | None = ..., tokenizer_from: str | None = ..., with_code: bool | None = ...,
    overwrite: bool | None = ..., as_adapter: bool | None = ..., adapter_rank: int | None = ..., shard_size: Size = ...,
    device: str | torch.device | None = ..., threads: int | None = ..., max_memory: Size = ...,
    digests: bool | None = ..., dry_run: Literal[False] | None = ..., progress: Counted = ..., note: Note | None = ...,
    **options: Grid,
) -> MergeReceipt: ...  # fmt: skip


def merge(
    inputs: Arguments = (), *,
    method: str | None = None, then: str | None = None, lines: bool | None = None,
    weights: Mapping[str, float] | None = None, coefficients: Location = None, also: Names = None,
    qkv: Qkv | None = None, dtype: str | torch.dtype | None = None,
    compute_dtype: Literal["float32", "float64"] | None = None, svd: Svd | None = None, seed: int | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None, from_: Location = None, task: str | None = None,
    base: Base = None, suite: Suite | str | Path | None = None, keep_base: bool | None = None, include: Globs = None,
    exclude: Globs = None, keep_from: Pairs = None, on_missing: OnMissing | None = None,
    on_buffer: OnBuffer | None = None, heads: Literal["refuse", "keep"] | None = None, strip_prefix: str | None = None,
    map: Globs = None, skip_input: Globs = None, allow_merged: bool | None = None, allow_pickle: bool | None = None,
    choose: str | None = None, adapt_split: str | None = None, limit: int | None = None, output: Location = None,
    config_from: str | None = None, tokenizer_from: str | None = None, with_code: bool | None = None,
    overwrite: bool | None = None, as_adapter: bool | None = None, adapter_rank: int | None = None,
    shard_size: Size = None, device: str | torch.device | None = None, threads: int | None = None,
    max_memory: Size = None, digests: bool | None = None, dry_run: bool | None = None, progress: Counted = None,
    note: Note | None = None, **options: Grid,
) -> MergePlan | MergeReceipt | dict[str, Tensor]:  # fmt: skip
    """Merges experts into one checkpoint, and returns the receipt; or state dicts into one, and returns its tensors.

    `inputs` are paths (files, indexes, folders, globs, `name=path`), or a mapping from task to path or to state dict;
    so is `base`. Where all experts are state dicts and no `output` is named, the merged tensors come back, in memory of
    their own on the CPU, and no file is touched; the inputs, on whatever device, stay as they are.

    Every other keyword is the command's option of that name (`taskmerge merge --help`), read as there: `"2G"` and
    `"projection,embedding"` mean the same here. None leaves a thing to the `recipe` (a YAML file, what one would hold,
    or a merged file), then to the `suite`, then to its usual value. What no keyword is called is an option of the
    method (`rank=0.08`); a sequence of values, or a text such as `"0.1,0.2"`, is a grid: one output a point.
    `dry_run=True` plans alone and returns the plan; `choose` keeps the point of a grid that a criterion without labels
    likes best (`Chosen`); `from_` makes the model of a folder of `adapt` again. `progress` hears of parameters done,
    and in all; `note` of notes and warnings (without it, the warnings of a merge in memory are Python's).

    Raises `TaskmergeError`.
    """
    call = locals()
    said = read.given(call, OWN) | options
    if from_ is not None:
        check_alone(call)
        again = rebuilding(read.path(from_, "--from"), inputs, said, task=task)
        return plan_merge(again.request) if dry_run else _heard(carry_out_rebuilding(again), note)
    if task is not None:
        raise UsageError("only a folder that `adapt` wrote has tasks", where="--task", hint="name it with `from_`")
    if coefficients is not None:
        said["weights"] = load_weights(read.path(coefficients, "--coefficients")) | dict(weights or {})
    request = requested(checked(inputs), said, suite=_suite(suite), recipe=_recipe(recipe))
    if not request.inputs:
        raise UsageError("there is nothing to merge", hint="give the fine-tuned checkpoints, such as '*.safetensors'")
    if dry_run:
        return plan_merge(request)
    if keeps_results(request.inputs, request.running):
        return _in_memory(request, note, choose)
    if choose is None:
        return _heard(merge_requested(request), note)
    found = _suite(suite)
    judged = found if isinstance(found, Suite) else load_suite(find_suite(found)[0])
    judging = Judging(by=choose, suite=judged, adapt_split=adapt_split or ADAPT, limit=limit, note=note or unheard)
    return _heard(carry_out_choice(request, judging), note)


def _suite(said: object) -> Suite | Path | None:
    """A suite, its file, its folder, or the name of one in the package."""
    return said if said is None or isinstance(said, Suite) else read.path(said, "--suite")


def _recipe(said: object) -> Path | Mapping[str, Any] | None:
    """A recipe's file, or what one would hold."""
    if said is None or (isinstance(said, Mapping) and all(isinstance(key, str) for key in said)):
        return said
    return read.path(said, "--recipe")


def _heard(receipt: MergeReceipt, note: Note | None) -> MergeReceipt:
    """The receipt, whose notes and warnings somebody hears."""
    for text in (*receipt.notes, *receipt.warnings):
        (note or unheard)(text)
    return receipt


def _in_memory(request: Request, note: Note | None, choose: str | None) -> dict[str, Tensor]:
    """The merged tensors; what is to be told of them goes to `note`, else warnings to Python's own."""
    if choose is not None:
        hint = "name a file with `output`: the points of the grid are judged as files"
        raise UsageError("models in memory cannot be judged", where="--choose", hint=hint)
    merged = merge_in_memory(request)
    for text in merged.warnings if note is None else ():
        warnings.warn(text, TaskmergeWarning, stacklevel=3)
    for text in (*merged.notes, *merged.warnings):
        (note or unheard)(text)
    return merged.tensors
