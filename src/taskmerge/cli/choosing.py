"""What `taskmerge merge --choose` does: merge a grid, judge it without labels, keep the best, show the order."""

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import show
from taskmerge.cli.merge_words import MergeWords
from taskmerge.cli.meter import Meter
from taskmerge.data.cache import default_cache
from taskmerge.evaluation.scores import Report
from taskmerge.merging.request import Request
from taskmerge.reports import render
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.version import __version__
from taskmerge.workflows.chosen_merge import Chosen, Judging, carry_out_choice


def run(request: Request, words: MergeWords, by: str, suite: Suite | None, ahead: Ahead) -> Chosen:
    """Chooses by the criterion `by` on `suite`, or else the working directory's; the order goes to stderr."""
    if suite is None:
        path, note = find_suite(None)
        suite = load_suite(path)
        show.notices([note] if note else [], (), words.quiet)
    split = words.adapt_split
    show.say(f"choosing by {by} on split `{split}` of {suite.name}: no label is read", words.quiet)
    with Meter(words.quiet) as meter:
        judging = Judging(
            by=by, suite=suite, adapt_split=split, limit=words.limit, cache=default_cache(), progress=meter.update,
            note=lambda text: show.notices([text], (), words.quiet),
        )  # fmt: skip
        chosen = carry_out_choice(request, judging, ahead)
    report = Report(__version__, suite.name, split, (), (), (), (), choices=chosen.choices)
    show.say(render.console(report).rstrip("\n"), words.quiet)
    return chosen
