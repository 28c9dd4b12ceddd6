"""`taskmerge spectrum`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from taskmerge.cli import options, show, sweep_words
from taskmerge.cli.meter import Bar
from taskmerge.cli.options import NAMES, Names, option
from taskmerge.cli.words import command, given_options

PANELS = {
    "rank": "What is measured", "suite": "Sweeps with data", "base": options.INPUT, "output": options.COST,
}  # fmt: skip
PRINTING = ("output", "overwrite", "json", "quiet", "debug", *sweep_words.FIELDS)


@dataclass(frozen=True, kw_only=True)
class SpectrumWords:
    """What was said on the command line, option by option; what was not is its default."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experts: files, folders, globs, or name=path (default: the suite's).", metavar="EXPERT..."
        ),
    ] = None

    rank: Annotated[str | None, option("Components whose spaces are compared: 0.08 or 8 (default: 0.08).")] = None
    ratios: Annotated[str | None, option("Ranks at which energies are given: 0.04,0.08,16.")] = None
    merged: Annotated[Path | None, option("A merged checkpoint whose space the task vectors are held against.")] = None
    also: Annotated[Names, option("Measure these classes too: projection,conv,embedding."), NAMES] = None
    qkv: Annotated[str | None, option("Attention q, k, v: as-is, split or fused.")] = None

    suite: sweep_words.Suite = None
    sweep: sweep_words.Sweep = None
    tasks: sweep_words.Tasks = None
    split: sweep_words.Split = None
    limit: sweep_words.Limit = None
    sweep_rank: sweep_words.SweepRank = None
    sweep_coefficient: sweep_words.SweepCoefficient = None
    sweep_matrix: sweep_words.SweepMatrix = None
    loss_labels: sweep_words.LossLabels = None
    batch_size: sweep_words.BatchSize = None
    seed: sweep_words.Seed = 0
    device: options.Device = None
    cache: sweep_words.Cache = None
    no_cache: sweep_words.NoCache = False

    base: options.Base = None
    keep_base: options.KeepBase = False
    include: options.Include = None
    exclude: options.Exclude = None
    on_missing: options.OnMissing = None
    strip_prefix: options.StripPrefix = None
    map: options.Map = None
    skip_input: options.SkipInput = None
    allow_merged: options.AllowMerged = False
    allow_pickle: options.AllowPickle = False

    output: Annotated[
        Path | None, option("Folder for report.json, its page and all singular values.", "--output", "-o")
    ] = None
    overwrite: options.Overwrite = False
    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.Json = False
    quiet: options.Quiet = False
    debug: options.Debug = False


@command(SpectrumWords, "spectrum", panels=PANELS)
def spectrum(words: SpectrumWords) -> None:
    """Look at the spectra of experts' task vectors and at what lies between them: no data needed.

    Every overlap stands beside what chance gives: a number without it misleads. Inputs and options are those of
    `merge`; -o writes a folder with the whole report, matrix by matrix, all singular values, and a page. With a suite
    and --sweep, merges are scored at many points, each stored as it is found: the same command goes on where it was
    stopped.
    """
    import taskmerge
    from taskmerge.cli import sweeping
    from taskmerge.cli.spectrum_page import show_page

    suite = sweeping.suite_of(words)
    sweeping.check_place(words)
    asked = None
    if suite is not None and words.sweep is not None and words.output is not None:
        asked = sweeping.requested(words, suite, words.output)
    keywords = {name: value for name, value in given_options(words).items() if name not in PRINTING}
    with Bar("measuring", words.quiet) as bar:
        report = taskmerge.spectrum(**keywords, **sweeping.completed(words, suite), progress=bar.update)
    if asked is not None:
        found = sweeping.swept(asked, words.quiet)
        report = replace(report, sweeps=found.document, sweep_seconds=found.seconds)
    document = report.to_dict()
    if words.output is not None:
        from taskmerge.cli.spectrum_files import write_folder

        write_folder(report, document, words.output, overwrite=words.overwrite)
    show.notices(report.notes, report.warnings, words.quiet)
    show.document(document) if words.json else show_page(document)
