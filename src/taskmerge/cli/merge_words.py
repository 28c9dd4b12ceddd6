"""What `taskmerge merge` can be told; options of the methods, which no command declares, stand among the inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options
from taskmerge.cli.options import ITEMS, NAMES, Names, completion, option
from taskmerge.cli.words import Reads
from taskmerge.specs.values import parse_weights

PANELS = {
    "method": "What is merged, and how",
    "base": options.INPUT,
    "choose": "Which point of a grid is kept",
    "output": options.COST,
}


@dataclass(frozen=True, kw_only=True)
class MergeWords:
    """What was said on the command line, option by option; what was not is its default."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experts: files, folders, globs, or name=path.",
            metavar="[INPUTS]...",
            autocompletion=completion("values"),
        ),
    ] = None

    method: Annotated[
        str | None,
        option(
            "Merging method, see `taskmerge methods` (default: cart).", "--method", "-m", completed="merging_methods"
        ),
    ] = None
    then: Annotated[
        str | None, option("What merges the task vectors that dare or breadcrumbs leave.", completed="chained_methods")
    ] = None
    lines: Annotated[bool, option("Scale the merged task vector by depth (LiNeS).", "--lines")] = False
    weight: Annotated[
        Mapping[str, float] | None,
        option("Weight of a task, NAME=VALUE (repeatable)."),
        Reads(parse_weights, list[str]),
    ] = None
    coefficients: Annotated[Path | None, option("YAML or JSON file of task weights, NAME: VALUE.")] = None
    also: Annotated[Names, option("Treat these classes as matrices too: projection,conv,embedding."), NAMES] = None
    qkv: Annotated[str | None, option("Attention q, k, v: as-is, split or fused.")] = None
    dtype: Annotated[
        str | None, option("Type of the output: float32, float16, bfloat16 ... (default: the experts').")
    ] = None
    compute_dtype: options.ComputeDtype = None
    svd: options.Svd = None
    seed: Annotated[int | None, option("Seed of random methods (default: 0).")] = None
    recipe: Annotated[Path | None, option("Recipe (YAML), or a merged file to replay.")] = None
    set: Annotated[list[str] | None, option("key=value over the recipe (repeatable).")] = None
    from_: Annotated[
        Path | None, option("Folder that `adapt` wrote: its model again, from its experts, without data.", "--from")
    ] = None
    task: Annotated[str | None, option("Of that folder: one task's own checkpoint, its block in place.")] = None

    base: options.Base = None
    suite: Annotated[
        Path | None, option("Suite whose experts, base, qkv and heads count where none are given.", completed="suites")
    ] = None
    keep_base: options.KeepBase = False
    include: options.Include = None
    exclude: options.Exclude = None
    keep_from: options.KeepFrom = None
    on_missing: options.OnMissing = None
    on_buffer: options.OnBuffer = None
    heads: options.Heads = None
    strip_prefix: options.StripPrefix = None
    map: options.Map = None
    skip_input: options.SkipInput = None
    allow_merged: options.AllowMerged = False
    allow_pickle: options.AllowPickle = False

    choose: Annotated[
        str | None,
        option("Keep the best by a criterion without labels: agreement, confident, kappa, overlap, entropy."),
    ] = None
    adapt_split: Annotated[str, option("The suite's split that --choose looks at (default: adapt).")] = "adapt"
    limit: Annotated[int | None, option("At most so many items of each task for --choose."), ITEMS] = None

    output: Annotated[
        Path | None, option("File (.safetensors) or folder (default: merged-METHOD.safetensors).", "--output", "-o")
    ] = None
    config_from: options.ConfigFrom = None
    tokenizer_from: options.TokenizerFrom = None
    with_code: Annotated[bool, option("Copy the model's own .py files too.", "--with-code")] = False
    overwrite: options.Overwrite = False
    as_adapter: Annotated[
        bool, option("Write a PEFT adapter: a folder with what the base has to be changed by.", "--as-adapter")
    ] = False
    adapter_rank: Annotated[
        int | None, option("Rank of that adapter (default: 16; `--rank` too where the method has none).")
    ] = None
    shard_size: options.ShardSize = None
    device: options.Device = None
    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    no_digest: Annotated[
        bool, option("Don't digest what is read (faster; replay and verify need digests).", "--no-digest")
    ] = False
    dry_run: Annotated[bool, option("Compare headers, print the plan, and stop.", "--dry-run")] = False
    json: options.JsonReceipt = False
    quiet: options.Quiet = False
    debug: options.Debug = False
