"""What `taskmerge spectrum --suite --sweep` does with its words: what a suite completes, and the sweeps."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmerge.cli import show, writing
from taskmerge.cli.meter import Bar
from taskmerge.cli.sweep_words import FIELDS
from taskmerge.cli.words import given_options
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from taskmerge.cli.spectrum import SpectrumWords
    from taskmerge.specs.suite import Suite
    from taskmerge.workflows.sweeps.request import SweepRequest
    from taskmerge.workflows.sweeps.sweep import SweepReport

OWN = frozenset({
    "suite", "sweep", "cache", "no_cache", "output", "rank", "ratios", "merged", "overwrite", "json", "quiet", "debug",
})  # fmt: skip
"""Words that are no keywords of sweeps."""


def suite_of(words: "SpectrumWords") -> "Suite | None":
    """The suite that is meant; None where nothing needs one. Raises UsageError for options without what they need."""
    from taskmerge.specs.suite_file import find_suite, load_suite

    _check(words)
    if words.suite is None and words.sweep is None and words.inputs:
        return None
    path, note = find_suite(words.suite)
    show.notices([note] if note else [], (), words.quiet)
    return load_suite(path)


def _check(words: "SpectrumWords") -> None:
    if words.sweep is not None:
        if words.output is None:
            what, hint = "stores its points in a folder", "name it: `-o FOLDER`"
            raise UsageError(what, where="--sweep", hint=hint)
        return
    alone = [name for name in given_options(words) if name in FIELDS and name not in ("suite", "tasks")]
    if alone:
        what = "says nothing without --sweep"
        raise UsageError(what, where=f"--{alone[0].replace('_', '-')}", hint="name kinds, such as `--sweep rank`")
    if words.tasks is not None and words.suite is None:
        raise UsageError("says nothing without --suite", where="--tasks", hint="name a suite, or leave it out")


def completed(words: "SpectrumWords", suite: "Suite | None") -> dict[str, Any]:
    """Inputs and base: those of the command line, else the suite's."""
    from taskmerge.checkpoint.hub import resolve
    from taskmerge.evaluation.workload import named_tasks

    if suite is None:
        return {}
    found: dict[str, Any] = {}
    if not words.inputs:
        tasks = [task for task in named_tasks(suite, words.tasks) if task.expert is not None]
        found["inputs"] = {task.name: resolve(task.expert) for task in tasks if task.expert is not None}
        if not found["inputs"]:
            hint = "give the fine-tuned checkpoints as arguments"
            raise UsageError("it names no expert", where=suite.where, hint=hint)
    if words.base is None and suite.base is not None:
        found["base"] = resolve(suite.base)
    if words.qkv is None and suite.qkv != "as-is":
        found["qkv"] = suite.qkv
    return found


def check_place(words: "SpectrumWords") -> None:
    """Raises BadOutput for a folder that holds something else than the points of a sweep that was stopped."""
    from taskmerge.workflows.sweeps.points import FOLDER

    folder = words.output
    if folder is None:
        return
    stopped = words.sweep is not None and folder.is_dir() and os.listdir(folder) == [FOLDER]
    writing.check_folder(folder, overwrite=words.overwrite or stopped)


def requested(words: "SpectrumWords", suite: "Suite", output: Path) -> "SweepRequest":
    """The sweeps that are asked for, whose points go to `output`, checked before anything is measured."""
    from taskmerge.data.cache import default_cache
    from taskmerge.workflows.sweep import sweep_requested

    given = {name: value for name, value in given_options(words).items() if name not in OWN}
    cache = None if words.no_cache else words.cache or default_cache()
    kept = {} if cache is None else {"cache": cache}
    keywords = {**given, **kept, "note": lambda text: show.notices([text], (), words.quiet)}
    return sweep_requested(words.sweep or "", suite, output, keywords)


def swept(asked: "SweepRequest", quiet: bool) -> "SweepReport":
    """Carries the sweeps out, with progress and time left on stderr."""
    from taskmerge.workflows.sweeps.sweep import sweep_asked

    with Bar("sweeping", quiet) as bar:
        return sweep_asked(asked if bar.update is None else replace(asked, progress=bar.update))
