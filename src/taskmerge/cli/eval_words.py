"""What `taskmerge eval` can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options
from taskmerge.cli.options import ITEMS, NAMES, Names, option

PANELS = {
    "suite": "What is evaluated",
    "json": "Where the result goes",
    "fail_under": "What must hold",
    "batch_size": "How it runs",
}


@dataclass(frozen=True, kw_only=True)
class EvalWords:
    """What was said on the command line, option by option; what was not is its default."""

    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs, name=path; `experts` and `base` are the suite's.", metavar="CHECKPOINTS..."
        ),
    ] = None

    suite: Annotated[
        Path | None,
        option(
            "Suite file, or the name of one in the package (default: suite.yaml here).",
            "--suite",
            "-s",
            completed="suites",
        ),
    ] = None
    tasks: Annotated[Names, option("Only these tasks, such as mnist,digits."), NAMES] = None
    split: Annotated[str, option("Split of the data (default: test).")] = "test"
    limit: Annotated[int | None, option("At most so many items of each task, drawn by --seed."), ITEMS] = None
    heads: Annotated[Path | None, option("Folder of TASK.safetensors in place of the suite's heads.")] = None
    cross: Annotated[bool, option("Every expert with every task's head.", "--cross")] = False
    compare: Annotated[str | None, option("experts: what a checkpoint loses and gains against them.")] = None
    corrupt: Annotated[Names, option("Also with corrupted pictures, such as motion_blur,jpeg."), NAMES] = None
    severity: Annotated[int | None, option("Of the corruptions, 1 to 5 (default: 5).")] = None
    loss_correlation: Annotated[
        bool, option("How losses without labels follow the true one.", "--loss-correlation")
    ] = False
    rank_by: Annotated[
        str | None,
        option("Order checkpoints without labels: agreement (with the experts), confident, kappa, overlap, entropy."),
    ] = None
    adapt_split: Annotated[str | None, option("Split that --rank-by looks at (default: adapt).")] = None
    skip_bad: Annotated[bool, option("Leave out items that cannot be decoded, and count them.", "--skip-bad")] = False
    map: options.Map = None
    allow_pickle: options.AllowPickle = False

    json: Annotated[bool, option("Print one JSON document instead of the table.", "--json")] = False
    markdown: Annotated[bool, option("Print Markdown instead of the table.", "--markdown")] = False
    csv: Annotated[str | None, option("Write the rows as CSV to a file; `-` prints them instead of the table.")] = None
    output: Annotated[
        Path | None,
        option("Write the JSON report to this file, or to FOLDER/ with page, Markdown and plots.", "--output", "-o"),
    ] = None
    clip_benchmark: Annotated[
        Path | None, option("Folder for one JSON file a score, which `clip_benchmark build` reads.")
    ] = None
    features: Annotated[
        int | None, option("Keep features of so many items of each task, in -o FOLDER/ (at most 500)."), ITEMS
    ] = None
    overwrite: options.Overwrite = False

    fail_under: Annotated[list[str] | None, option("NAME=SCORE: exit 8 if average, normalised or a task is lower.")] = (
        None
    )
    fail_over: Annotated[list[str] | None, option("NAME=ERROR: exit 8 if it is higher.")] = None
    baseline: Annotated[Path | None, option("Earlier report: exit 8 if a score is worse than there.")] = None
    tolerance: Annotated[float | None, option("How much worse than the baseline may be (default: 0).")] = None

    batch_size: Annotated[int | None, option("Items encoded at once (default: 64)."), ITEMS] = None
    device: options.Device = None
    seed: Annotated[int, option("Of --limit and of intervals (default: 0).")] = 0
    cache: Annotated[Path | None, option("Folder that keeps decoded items.")] = None
    no_cache: Annotated[bool, option("Decode everything again.", "--no-cache")] = False
    quiet: options.Quiet = False
    debug: options.Debug = False

    @property
    def csv_file(self) -> Path | None:
        """Where the rows go as CSV, unless they are printed."""
        return None if self.csv in (None, "-") else Path(str(self.csv))
