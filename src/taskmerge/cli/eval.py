"""`taskmerge eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taskmerge.cli.app import app

WHAT, OUT, CHECK, COST = "What is evaluated", "Where the result goes", "What must hold", "How it runs"


def _option(help: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, readable=False)


@app.command("eval")
def evaluate(
    context: typer.Context,
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs, name=path; `experts` and `base` are the suite's.", metavar="CHECKPOINTS..."
        ),
    ] = None,
    suite: Annotated[
        Path | None,
        _option("Suite file, or the name of one in the package (default: suite.yaml here).", WHAT, "--suite", "-s"),
    ] = None,
    tasks: Annotated[str | None, _option("Only these tasks, such as mnist,digits.", WHAT)] = None,
    split: Annotated[str, _option("Split of the data (default: test).", WHAT)] = "test",
    limit: Annotated[int | None, _option("At most so many items of each task, drawn by --seed.", WHAT)] = None,
    heads: Annotated[Path | None, _option("Folder of TASK.safetensors in place of the suite's heads.", WHAT)] = None,
    cross: Annotated[bool, _option("Every expert with every task's head.", WHAT, "--cross")] = False,
    compare: Annotated[str | None, _option("experts: what a checkpoint loses and gains against them.", WHAT)] = None,
    corrupt: Annotated[str | None, _option("Also with corrupted pictures, such as motion_blur,jpeg.", WHAT)] = None,
    severity: Annotated[int | None, _option("Of the corruptions, 1 to 5 (default: 5).", WHAT)] = None,
    loss_correlation: Annotated[
        bool, _option("How losses without labels follow the true one.", WHAT, "--loss-correlation")
    ] = False,
    rank_by: Annotated[
        str | None,
        _option(
            "Order checkpoints without labels: agreement (with the experts), confident, kappa, overlap, entropy.", WHAT
        ),
    ] = None,
    adapt_split: Annotated[str | None, _option("Split that --rank-by looks at (default: adapt).", WHAT)] = None,
    skip_bad: Annotated[
        bool, _option("Leave out items that cannot be decoded, and count them.", WHAT, "--skip-bad")
    ] = False,
    allow_pickle: Annotated[
        bool, _option("Read .bin and .pt checkpoints (weights only).", WHAT, "--allow-pickle")
    ] = False,
    json: Annotated[bool, _option("Print one JSON document instead of the table.", OUT, "--json")] = False,
    markdown: Annotated[bool, _option("Print Markdown instead of the table.", OUT, "--markdown")] = False,
    csv: Annotated[
        str | None, _option("Write the rows as CSV to a file; `-` prints them instead of the table.", OUT)
    ] = None,
    output: Annotated[Path | None, _option("Write the JSON report to this file.", OUT, "--output", "-o")] = None,
    clip_benchmark: Annotated[
        Path | None, _option("Folder for one JSON file a score, which `clip_benchmark build` reads.", OUT)
    ] = None,
    overwrite: Annotated[bool, _option("Replace existing files.", OUT, "--overwrite")] = False,
    fail_under: Annotated[
        list[str] | None, _option("NAME=SCORE: exit 8 if average, normalised or a task is lower.", CHECK)
    ] = None,
    fail_over: Annotated[list[str] | None, _option("NAME=ERROR: exit 8 if it is higher.", CHECK)] = None,
    baseline: Annotated[Path | None, _option("Earlier report: exit 8 if a score is worse than there.", CHECK)] = None,
    tolerance: Annotated[float | None, _option("How much worse than the baseline may be (default: 0).", CHECK)] = None,
    batch_size: Annotated[int | None, _option("Items encoded at once (default: 64).", COST)] = None,
    device: Annotated[str, _option("auto, cpu or cuda:N (default: auto).", COST)] = "auto",
    seed: Annotated[int, _option("Of --limit and of intervals (default: 0).", COST)] = 0,
    cache: Annotated[Path | None, _option("Folder that keeps decoded items.", COST)] = None,
    no_cache: Annotated[bool, _option("Decode everything again.", COST, "--no-cache")] = False,
    quiet: Annotated[bool, _option("Say nothing but the result and errors.", COST, "--quiet", "-q")] = False,
    debug: Annotated[bool, _option("Show tracebacks.", COST, "--debug")] = False,
) -> None:
    """Score checkpoints on the tasks of a suite, and print one table of tasks and checkpoints.

    `experts` is each task's own expert on its task, to which `normalised` scores are relative; `base` is the suite's
    base. Scores are percent in the table and fractions everywhere else.
    """
    from taskmerge.cli import evaluating

    evaluating.run(dict(context.params))
