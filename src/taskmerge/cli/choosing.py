"""What `taskmerge merge --choose` does: merge a grid, judge it without labels, keep the best, show the order."""

from collections.abc import Mapping
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import show
from taskmerge.cli.meter import Meter
from taskmerge.data.cache import default_cache
from taskmerge.errors import UsageError
from taskmerge.evaluation.scores import Report
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.options import Arguments, RunOptions
from taskmerge.reports import render
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.version import __version__
from taskmerge.workflows.chosen_merge import Chosen, Judging, carry_out_choice


def run(
    inputs: Arguments, spec: MergeSpec, opening: InputOptions, running: RunOptions, said: Mapping[str, Any],
    suite: Suite | None, ahead: Ahead,
) -> Chosen:  # fmt: skip
    """Carries out the choice on what --suite names, or the working directory's suite; the order goes to stderr."""
    if suite is None:
        path, note = find_suite(None)
        suite = load_suite(path)
        show.notices([note] if note else [], (), said["quiet"])
    show.say(f"choosing by {said['choose']} on split `{said['adapt_split']}` of {suite.name}: no label is read",
             said["quiet"])  # fmt: skip
    if said["limit"] is not None and said["limit"] < 1:
        raise UsageError(f"{said['limit']} items cannot be taken", where="--limit", hint="give 1 or more")
    with Meter(said["quiet"]) as meter:
        judging = Judging(
            by=said["choose"], suite=suite, adapt_split=said["adapt_split"], limit=said["limit"],
            cache=default_cache(), progress=meter.update, note=lambda text: show.notices([text], (), said["quiet"]),
        )  # fmt: skip
        chosen = carry_out_choice(inputs, spec, opening, running, judging, ahead)
    report = Report(__version__, suite.name, said["adapt_split"], (), (), (), (), choices=chosen.choices)
    show.say(render.console(report).rstrip("\n"), said["quiet"])
    return chosen
