"""`taskmerge vectors`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options, show
from taskmerge.cli.meter import Bar
from taskmerge.cli.options import NAMES, Names, option
from taskmerge.cli.words import command, given_options

PANELS = {"centre": "What is written", "base": options.INPUT, "output": options.COST}
PRINTING = ("json", "quiet", "debug")


@dataclass(frozen=True, kw_only=True)
class VectorsWords:
    """What was said on the command line, option by option; what was not is its default."""

    inputs: Annotated[
        list[str], typer.Argument(help="Experts: files, folders, globs, or name=path.", metavar="INPUTS...")
    ]

    centre: Annotated[bool, option("Differences from the experts' average; writes it too.", "--centre")] = False
    rank: Annotated[str | None, option("Write matrices as factors: 0.08, 8 or energy:0.95.")] = None
    apply: Annotated[bool, option("Add them back: write full checkpoints.", "--apply")] = False
    coefficient: Annotated[float, option("Scale what --apply adds; negative removes (default: 1).")] = 1.0
    dtype: Annotated[str | None, option("Type of dense tensors (default: float32; the experts' with --apply).")] = None
    also: Annotated[Names, option("Factor these classes too: projection,conv,embedding."), NAMES] = None
    compute_dtype: options.ComputeDtype = None
    svd: options.Svd = None

    base: Annotated[Path | None, option("What the differences are taken from (a centre, for centred ones).")] = None
    keep_base: options.KeepBase = False
    include: options.Include = None
    exclude: options.Exclude = None
    on_missing: options.OnMissing = None
    on_buffer: Annotated[str | None, option("Integer tensors of a centre that differ: refuse or first.")] = None
    strip_prefix: options.StripPrefix = None
    map: options.Map = None
    skip_input: options.SkipInput = None
    allow_merged: options.AllowMerged = False
    allow_pickle: options.AllowPickle = False

    output: Annotated[Path | None, option("Folder (default: vectors; applied with --apply).", "--output", "-o")] = None
    overwrite: options.Overwrite = False
    shard_size: options.ShardSize = None
    device: options.Device = None
    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.JsonReceipt = False
    quiet: options.Quiet = False
    debug: options.Debug = False


@command(VectorsWords, "vectors", panels=PANELS)
def vectors(words: VectorsWords) -> None:
    """Write task vectors, or their factors, and print the paths; or add them back onto a base.

    `merge` takes these files in place of experts, given the same base (or centre.safetensors).
    """
    import taskmerge

    keywords = {name: value for name, value in given_options(words).items() if name not in PRINTING}
    with Bar("subtracting", words.quiet) as bar:
        receipt = taskmerge.vectors(**keywords, progress=bar.update)
    show.notices(receipt.notes, receipt.warnings, words.quiet)
    cost = f"{show.size(receipt.bytes_written)} written, peak memory {show.size(receipt.peak_memory)}"
    show.say(f"done in {receipt.seconds:.1f} s, {cost}", words.quiet)
    show.document(receipt.to_dict()) if words.json else show.results(receipt.paths)
