"""What `taskmerge adapt` can be told; options of the methods, which no command declares, stand among the inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options
from taskmerge.cli.options import ITEMS, NAMES, Names, completion, option

PANELS = {
    "method": "What is learnt, and from what",
    "iterations": "How long, and how fast",
    "init": "Where it starts",
    "seed": "Which items",
    "base": options.INPUT,
    "output": options.COST,
}


@dataclass(frozen=True, kw_only=True)
class AdaptWords:
    """What was said on the command line, option by option; what was not is its default."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experts in place of the suite's: files, folders, globs, name=path.",
            metavar="[INPUTS]...",
            autocompletion=completion("values"),
        ),
    ] = None

    method: Annotated[
        str | None,
        option(
            "Adaptive method, see `taskmerge methods` (default: blocks); auto tries several, and keeps the one that "
            "agrees best with the experts.",
            "--method",
            "-m",
            completed="adapting_methods",
        ),
    ] = None
    budget: Annotated[int | None, option("Iterations that the methods of auto share (default: 200).")] = None
    suite: Annotated[
        Path | None,
        option(
            "Suite file, or the name of one in the package (default: suite.yaml here).",
            "--suite",
            "-s",
            completed="suites",
        ),
    ] = None
    with_: Annotated[
        str | None,
        option("Learn too what this method learns, by its objective.", "--with", completed="adaptive_methods"),
    ] = None
    origin: Annotated[str | None, option("What task vectors start from: base or mean (of the experts).")] = None
    train: Annotated[Names, option("Only these: coefficients,masks,relaxed,heads,block,adapter."), NAMES] = None
    objective: Annotated[
        str | None, option("entropy, or against the expert: self, soft, l1, smooth_l1, l2, cosine, kl, js.")
    ] = None
    on: Annotated[str | None, option("What is compared with the expert: outputs or features.")] = None
    filter: Annotated[str | None, option("Items that count: none (all), code or paper (see tint++).")] = None
    updates: Annotated[str | None, option("joint (all tasks at once) or sequential (one after the other).")] = None
    layer: Annotated[
        str | None,
        option(
            "A task's own layer: head, a block (0, 1 ... as in tensor names, through all stages of a ResNet; first, "
            "middle, last), early, late, all."
        ),
    ] = None
    block_start: Annotated[
        str | None, option("Where a task's own block starts: merged, or expert (as its expert has it).")
    ] = None

    iterations: Annotated[
        int | None, option("Visits of every task; an update each, or one a task.", "--iterations", "-n")
    ] = None
    batch_size: Annotated[int | None, option("Items of a task in an update.")] = None
    lr: Annotated[float | None, option("Learning rate of everything that has no rate of its own.")] = None
    head_lr: Annotated[float | None, option("Learning rate of heads.")] = None
    mask_lr: Annotated[float | None, option("Learning rate of masks (default: 1/updates, at least 0.001).")] = None
    project: Annotated[bool, option("Keep coefficients in [0, 1].", "--project")] = False
    parity: Annotated[bool, option("The reference code's own choices.", "--parity")] = False
    stop: Annotated[str | None, option("agreement: keep the update that says most of what the experts say.")] = None
    held_out: Annotated[
        float, option("Share of items that --stop looks at and nothing learns from (default: 0.2).")
    ] = 0.2
    every: Annotated[int | None, option("Updates between two looks of --stop (default: a twentieth).")] = None
    watch: Annotated[int | None, option("Score the model every so many updates, for curves in the trace.")] = None
    amp: Annotated[str | None, option("bf16: forward and backward in bfloat16.")] = None

    init: Annotated[
        str | None,
        option(
            "A merging method, a checkpoint, a folder of adapt, or a file of coefficients.", completed="merging_methods"
        ),
    ] = None
    heads_start: Annotated[str | None, option("Heads start: given, fitted (solved for) or random.")] = None
    refit_heads: Annotated[bool, option("Solve for every head at the end.", "--refit-heads")] = False
    head_pull: Annotated[
        float | None, option("Pull of solved heads to the original ones (default: chosen by items left out).")
    ] = None
    head_temperature: Annotated[
        float | None, option("Of soft labels and logits of solved heads (default: the spread of the logits).")
    ] = None
    teacher_scale: Annotated[float, option("Experts as base + so many times their task vector (default: 1).")] = 1.0

    seed: Annotated[int, option("Of batches and whatever is drawn (default: 0).")] = 0
    seeds: Annotated[int | None, option("So many runs, SEED, SEED + 1 ..., each into OUTPUT/seed-SEED.")] = None
    adapt_split: Annotated[str, option("Split that is learnt from, without its labels (default: adapt).")] = "adapt"
    split: Annotated[str, option("Labelled split that the written model is scored on (default: test).")] = "test"
    tasks: Annotated[Names, option("Only these tasks of the suite, such as mnist,digits."), NAMES] = None
    limit: Annotated[int | None, option("At most so many items of each task, drawn by --seed."), ITEMS] = None

    base: Annotated[Path | None, option("The checkpoint that the experts were fine-tuned from.")] = None
    qkv: Annotated[str | None, option("Attention q, k, v: as-is, split or fused.")] = None
    also: Annotated[Names, option("Treat these classes as matrices too: projection,conv,embedding."), NAMES] = None
    include: options.Include = None
    exclude: options.Exclude = None
    keep_from: options.KeepFrom = None
    on_missing: options.OnMissing = None
    on_buffer: options.OnBuffer = None
    strip_prefix: options.StripPrefix = None
    map: options.Map = None
    allow_merged: options.AllowMerged = False
    allow_pickle: options.AllowPickle = False
    dtype: Annotated[
        str | None, option("Type of the model's tensors: float32, float16, bfloat16 ... (default: the experts').")
    ] = None
    compute_dtype: options.ComputeDtype = None

    output: Annotated[Path | None, option("Folder (default: adapted-METHOD).", "--output", "-o")] = None
    overwrite: Annotated[
        bool, option("Replace a finished folder, or start an unfinished run again.", "--overwrite")
    ] = False
    resume: Annotated[bool, option("Continue the unfinished run in the output.", "--resume")] = False
    keep_state: Annotated[bool, option("Keep the state of the optimiser in the folder.", "--keep-state")] = False
    device: options.Device = None
    threads: options.Threads = None
    cache: Annotated[Path | None, option("Folder that keeps decoded items and experts' outputs.")] = None
    no_cache: Annotated[bool, option("Keep nothing between runs.", "--no-cache")] = False
    page: Annotated[bool, option("Also write report.html, report.md and figures/ into the folder.", "--page")] = False
    no_scores: Annotated[bool, option("Don't score the written model.", "--no-scores")] = False
    dry_run: Annotated[
        bool, option("Check everything, say what would be learnt and how long it takes, and stop.", "--dry-run")
    ] = False
    json: options.JsonReceipt = False
    quiet: options.Quiet = False
    debug: options.Debug = False
