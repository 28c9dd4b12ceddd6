"""`taskmerge report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options
from taskmerge.cli.options import option
from taskmerge.cli.words import command


@dataclass(frozen=True, kw_only=True)
class ReportWords:
    """What was said on the command line, option by option; what was not is its default."""

    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders or report files of eval, adapt and spectrum, receipts of merge --json; name=path names one.",
            metavar="FOLDER...",
        ),
    ] = None

    output: Annotated[
        Path | None,
        option("A .html or .md file, or a folder for page, Markdown and plots (default: report.html).",
               "--output", "-o"),
    ] = None  # fmt: skip
    json: options.Json = False
    overwrite: options.Overwrite = False
    quiet: options.Quiet = False
    debug: options.Debug = False


@command(ReportWords, "report")
def report(words: ReportWords) -> None:
    """Make one self-contained page of a run, or compare several.

    The page needs no network and no other file. It says first which model is best, how good, against what and how
    sure; then why. A folder gets report.html, report.md and figures/ with SVG and PNG of every plot.
    """
    from taskmerge.cli import reporting

    reporting.run(words)
