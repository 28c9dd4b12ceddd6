"""`taskmerge doctor`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from taskmerge.cli import doctor_page, options, show
from taskmerge.cli.meter import Bar
from taskmerge.cli.method_command import PairCommand
from taskmerge.cli.options import option
from taskmerge.cli.words import command, given_options

PANELS = {"base": options.INPUT, "threads": "What it may cost, and what is printed"}
PRINTING = ("json", "quiet", "debug")


@dataclass(frozen=True, kw_only=True)
class DoctorWords:
    """What was said on the command line, option by option; what was not is its default."""

    inputs: Annotated[
        list[str], typer.Argument(help="Experts: files, folders, globs, or name=path.", metavar="EXPERT...")
    ]

    base: options.Base = None
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
    config_from: options.ConfigFrom = None
    tokenizer_from: options.TokenizerFrom = None

    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.Json = False
    quiet: Annotated[bool, option("Print only the verdict.", "--quiet", "-q")] = False
    debug: options.Debug = False


@command(DoctorWords, "doctor", panels=PANELS, cls=PairCommand)
def doctor(words: DoctorWords) -> None:
    """Look at experts and their base before any merge: do they belong together, and what stands in the way?

    Options are those of `merge`; nothing is written. Exit code 0 when a merge of these would go through, 4 when
    something stands in the way, 3 when an input is damaged. The commands at the end of the page have been planned.
    """
    import taskmerge
    from taskmerge.methods.registry import problems

    keywords = {name: value for name, value in given_options(words).items() if name not in PRINTING}
    with Bar("comparing", words.quiet) as bar:
        diagnosis = taskmerge.doctor(**keywords, progress=bar.update)
    show.notices((), problems(), words.quiet)
    if words.json:
        show.document(diagnosis.to_dict())
    else:
        doctor_page.show_page(diagnosis, words.quiet)
    if not diagnosis.fits:
        raise typer.Exit(diagnosis.exit_code)
