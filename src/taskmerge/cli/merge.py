"""`taskmerge merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskmerge.cli.app import app

if TYPE_CHECKING:
    from taskmerge.specs.suite import Suite

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
RESULT, INPUT, COST = "What is merged, and how", "How inputs are understood", "Where it goes, and what it may cost"
CHOICE = "Which point of a grid is kept"


def _option(help: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, readable=False)


@app.command(context_settings=PASS_ON)
def merge(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Experts: files, folders, globs, or name=path.", metavar="[INPUTS]...")
    ] = None,
    method: Annotated[
        str | None, _option("Merging method, see `taskmerge methods` (default: cart).", RESULT, "--method", "-m")
    ] = None,
    then: Annotated[str | None, _option("What merges the task vectors that dare or breadcrumbs leave.", RESULT)] = None,
    lines: Annotated[bool, _option("Scale the merged task vector by depth (LiNeS).", RESULT, "--lines")] = False,
    weight: Annotated[list[str] | None, _option("Weight of a task, NAME=VALUE (repeatable).", RESULT)] = None,
    coefficients: Annotated[Path | None, _option("YAML or JSON file of task weights, NAME: VALUE.", RESULT)] = None,
    also: Annotated[
        str | None, _option("Treat these classes as matrices too: projection,conv,embedding.", RESULT)
    ] = None,
    qkv: Annotated[str | None, _option("Attention q, k, v: as-is, split or fused.", RESULT)] = None,
    dtype: Annotated[
        str | None, _option("Type of the output: float32, float16, bfloat16 ... (default: the experts').", RESULT)
    ] = None,
    compute_dtype: Annotated[str | None, _option("Type of the arithmetic: float32 or float64.", RESULT)] = None,
    svd: Annotated[str | None, _option("Factorisation: exact or randomized.", RESULT)] = None,
    seed: Annotated[int | None, _option("Seed of random methods (default: 0).", RESULT)] = None,
    recipe: Annotated[Path | None, _option("Recipe (YAML), or a merged file to replay.", RESULT)] = None,
    set_: Annotated[list[str] | None, _option("key=value over the recipe (repeatable).", RESULT, "--set")] = None,
    base: Annotated[Path | None, _option("The checkpoint that the experts were fine-tuned from.", INPUT)] = None,
    suite: Annotated[
        Path | None, _option("Suite whose experts, base, qkv and heads count where none are given.", INPUT, "--suite")
    ] = None,
    keep_base: Annotated[bool, _option("Merge the base as an expert too.", INPUT, "--keep-base")] = False,
    include: Annotated[list[str] | None, _option("Only tensors whose names match (glob, repeatable).", INPUT)] = None,
    exclude: Annotated[list[str] | None, _option("Not tensors whose names match (glob, repeatable).", INPUT)] = None,
    on_missing: Annotated[str | None, _option("Tensors that some input lacks: refuse, base or skip.", INPUT)] = None,
    on_buffer: Annotated[str | None, _option("Integer tensors that differ: refuse or first.", INPUT)] = None,
    heads: Annotated[
        str | None, _option("Task heads: refuse shapes that differ, or keep each whole, per task.", INPUT)
    ] = None,
    strip_prefix: Annotated[str | None, _option("Prefix to take off tensor names.", INPUT)] = None,
    skip_input: Annotated[list[str] | None, _option("Leave out inputs that match (glob, repeatable).", INPUT)] = None,
    allow_merged: Annotated[bool, _option("Merge earlier results like experts.", INPUT, "--allow-merged")] = False,
    allow_pickle: Annotated[
        bool, _option("Read .bin and .pt state dicts (weights only).", INPUT, "--allow-pickle")
    ] = False,
    choose: Annotated[
        str | None,
        _option("Keep the best by a criterion without labels: agreement, confident, kappa, overlap, entropy.", CHOICE),
    ] = None,
    adapt_split: Annotated[
        str, _option("The suite's split that --choose looks at (default: adapt).", CHOICE)
    ] = "adapt",
    limit: Annotated[int | None, _option("At most so many items of each task for --choose.", CHOICE)] = None,
    output: Annotated[
        Path | None,
        _option("File (.safetensors) or folder (default: merged-METHOD.safetensors).", COST, "--output", "-o"),
    ] = None,
    overwrite: Annotated[bool, _option("Replace an existing output.", COST, "--overwrite")] = False,
    shard_size: Annotated[str | None, _option("Largest size of one file, such as 5GB.", COST)] = None,
    device: Annotated[str | None, _option("auto, cpu or cuda:N.", COST)] = None,
    threads: Annotated[
        int | None, _option("Tensors merged at once (default: all cores).", COST, "--threads", "-j")
    ] = None,
    max_memory: Annotated[str | None, _option("Keep peak memory below this, such as 2G.", COST)] = None,
    no_digest: Annotated[
        bool, _option("Don't digest what is read (faster; replay and verify need digests).", COST, "--no-digest")
    ] = False,
    dry_run: Annotated[bool, _option("Compare headers, print the plan, and stop.", COST, "--dry-run")] = False,
    json: Annotated[bool, _option("Print one JSON document instead of paths.", COST, "--json")] = False,
    quiet: Annotated[bool, _option("Say nothing but the result and errors.", COST, "--quiet", "-q")] = False,
    debug: Annotated[bool, _option("Show tracebacks.", COST, "--debug")] = False,
) -> None:
    """Merge experts into one checkpoint, and print the path that was written.

    Options of the method follow the same way (`--rank 0.08`): `taskmerge methods NAME` lists them. Commas and
    start:stop:step write one output per grid point; --choose keeps the best of them by a suite's unlabelled items.
    """
    from taskmerge.checkpoint.ahead import Ahead, files_among

    said = dict(context.params)
    words = [*(said.pop("inputs") or []), *context.args]
    flags = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
    named = _loaded(suite) if suite is not None else None
    files = files_among(words) or files_among(_places(named) if named else [])
    with Ahead([] if no_digest or dry_run else files) as ahead:
        from taskmerge.cli import merging  # imports torch: a second or two

        merging.run(words, flags, said, named, ahead)


def _loaded(path: Path) -> "Suite":
    """What --suite names, read without torch: its experts can be digested while that is imported."""
    from taskmerge.specs.suite_file import find_suite, load_suite

    return load_suite(find_suite(path)[0])


def _places(suite: "Suite") -> list[str]:
    """The experts of a suite, and its base, that lie on this machine; the base last: not every merge reads it."""
    places = [*(task.expert for task in suite.tasks), suite.base]
    return [str(one) for one in places if isinstance(one, Path)]
