"""`taskmerge vectors`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taskmerge.cli import show
from taskmerge.cli.app import app

RESULT, INPUT, COST = "What is written", "How inputs are understood", "Where it goes, and what it may cost"
SIZES = ("shard_size", "max_memory")
SPLIT = "also"


def _option(help: str, panel: str, *names: str) -> Any:  # typer's own word
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, readable=False)


@app.command()
def vectors(
    context: typer.Context,
    inputs: Annotated[
        list[str], typer.Argument(help="Experts: files, folders, globs, or name=path.", metavar="INPUTS...")
    ],
    centre: Annotated[
        bool, _option("Differences from the experts' average; writes it too.", RESULT, "--centre")
    ] = False,
    rank: Annotated[str | None, _option("Write matrices as factors: 0.08, 8 or energy:0.95.", RESULT)] = None,
    apply: Annotated[bool, _option("Add them back: write full checkpoints.", RESULT, "--apply")] = False,
    coefficient: Annotated[float, _option("Scale what --apply adds; negative removes (default: 1).", RESULT)] = 1.0,
    dtype: Annotated[
        str | None, _option("Type of dense tensors (default: float32; the experts' with --apply).", RESULT)
    ] = None,
    also: Annotated[str | None, _option("Factor these classes too: projection,conv,embedding.", RESULT)] = None,
    compute_dtype: Annotated[str | None, _option("Type of the arithmetic: float32 or float64.", RESULT)] = None,
    svd: Annotated[str | None, _option("Factorisation: exact or randomized.", RESULT)] = None,
    base: Annotated[
        Path | None, _option("What the differences are taken from (a centre, for centred ones).", INPUT)
    ] = None,
    keep_base: Annotated[bool, _option("Take the base as an expert too.", INPUT, "--keep-base")] = False,
    include: Annotated[list[str] | None, _option("Only tensors whose names match (glob, repeatable).", INPUT)] = None,
    exclude: Annotated[list[str] | None, _option("Not tensors whose names match (glob, repeatable).", INPUT)] = None,
    on_missing: Annotated[str | None, _option("Tensors that some input lacks: refuse, base or skip.", INPUT)] = None,
    on_buffer: Annotated[
        str | None, _option("Integer tensors of a centre that differ: refuse or first.", INPUT)
    ] = None,
    strip_prefix: Annotated[str | None, _option("Prefix to take off tensor names.", INPUT)] = None,
    skip_input: Annotated[list[str] | None, _option("Leave out inputs that match (glob, repeatable).", INPUT)] = None,
    allow_merged: Annotated[bool, _option("Take earlier results like experts.", INPUT, "--allow-merged")] = False,
    allow_pickle: Annotated[
        bool, _option("Read .bin and .pt state dicts (weights only).", INPUT, "--allow-pickle")
    ] = False,
    output: Annotated[
        Path | None, _option("Folder (default: vectors; applied with --apply).", COST, "--output", "-o")
    ] = None,
    overwrite: Annotated[bool, _option("Replace existing files.", COST, "--overwrite")] = False,
    shard_size: Annotated[str | None, _option("Largest size of one file, such as 5GB.", COST)] = None,
    device: Annotated[str | None, _option("auto, cpu or cuda:N.", COST)] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "-j",
            min=1,
            help="Tensors at once (default: all cores).",
            rich_help_panel=COST,
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[str | None, _option("Keep peak memory below this, such as 2G.", COST)] = None,
    json: Annotated[bool, _option("Print one JSON document instead of paths.", COST, "--json")] = False,
    quiet: Annotated[bool, _option("Say nothing but the result and errors.", COST, "--quiet", "-q")] = False,
    debug: Annotated[bool, _option("Show tracebacks.", COST, "--debug")] = False,
) -> None:
    """Write task vectors, or their factors, and print the paths; or add them back onto a base.

    `merge` takes these files in place of experts, given the same base (or centre.safetensors).
    """
    import taskmerge

    with show.Bar("subtracting", quiet) as progress:
        receipt = taskmerge.vectors(inputs, **keywords(context.params), progress=progress.update)
    show.notices(receipt.notes, receipt.warnings, quiet)
    peak = show.size(receipt.peak_memory)
    show.say(f"done in {receipt.seconds:.1f} s, {show.size(receipt.bytes_written)} written, peak memory {peak}", quiet)
    show.document(receipt.to_dict()) if json else print("\n".join(receipt.paths))


def keywords(said: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line, as keywords of `vectors`; what was not said is absent."""
    own = ("inputs", "json", "quiet", "debug")
    found = {name: value for name, value in said.items() if name not in own and value not in (None, False, [])}
    for name in SIZES:
        if name in found:
            found[name] = show.parse_size(found[name], f"--{name.replace('_', '-')}")
    for name in ("include", "exclude", "skip_input"):
        if name in found:
            found[name] = tuple(found[name])
    if SPLIT in found:
        found[SPLIT] = tuple(part.strip() for part in found[SPLIT].split(","))
    return found
