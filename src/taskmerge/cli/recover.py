"""`taskmerge recover`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options, recover_page, show
from taskmerge.cli.meter import Bar
from taskmerge.cli.options import option
from taskmerge.cli.words import command, given_options

PANELS = {"base": options.INPUT, "threads": "What it may cost, and what is printed"}
PRINTING = ("json", "quiet", "debug")


@dataclass(frozen=True, kw_only=True)
class RecoverWords:
    """What was said on the command line, option by option; what was not is its default."""

    merged: Annotated[Path, typer.Argument(help="The merged checkpoint.", metavar="MERGED", readable=False)]
    experts: Annotated[
        list[str], typer.Argument(help="Candidates: files, folders, globs, or name=path.", metavar="EXPERT...")
    ]

    base: options.Base = None
    include: options.Include = None
    exclude: options.Exclude = None
    on_missing: options.OnMissing = None
    heads: options.Heads = None
    strip_prefix: options.StripPrefix = None
    map: options.Map = None
    skip_input: options.SkipInput = None
    allow_pickle: options.AllowPickle = False

    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.Json = False
    quiet: Annotated[bool, option("Print only the verdict.", "--quiet", "-q")] = False
    debug: options.Debug = False


@command(RecoverWords, "recover", panels=PANELS)
def recover(words: RecoverWords) -> None:
    """Say which experts, with which coefficients, make a checkpoint, and what no coefficients explain.

    From numbers alone, in one reading of every input; what is left is judged by what rounding leaves. What the answer
    is makes no difference to the exit code: 0.
    """
    import taskmerge

    keywords = {name: value for name, value in given_options(words).items() if name not in PRINTING}
    with Bar("comparing", words.quiet) as bar:
        found = taskmerge.recover(**keywords, progress=bar.update)
    if words.json:
        show.document(found.to_dict())
    else:
        show.notices(found.notes, found.warnings, words.quiet)
        recover_page.show_page(found, words.quiet)
