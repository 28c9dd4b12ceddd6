"""`taskmerge merge`."""

from pathlib import Path
from typing import TYPE_CHECKING

from taskmerge.cli.merge_words import PANELS, MergeWords
from taskmerge.cli.method_command import MethodCommand
from taskmerge.cli.options import METHOD_OPTIONS
from taskmerge.cli.words import command

if TYPE_CHECKING:
    from taskmerge.specs.suite import Suite


@command(MergeWords, "merge", panels=PANELS, cls=MethodCommand, context_settings=METHOD_OPTIONS)
def merge(words: MergeWords) -> None:
    """Merge experts into one checkpoint, and print the path that was written.

    Options of the method follow the same way (`--rank 0.08`): `taskmerge methods NAME` lists them. Commas and
    start:stop:step write one output per grid point; --choose keeps the best of them by a suite's unlabelled items.
    """
    from taskmerge.checkpoint.ahead import Ahead, files_among
    from taskmerge.methods.listing import check_merging

    for name, flag in ((words.method, "--method"), (words.then, "--then")):
        if name is not None:
            check_merging(name, flag)
    suite = _loaded(words.suite) if words.suite is not None else None
    files = files_among(words.inputs or []) or files_among(_places(suite) if suite else [])
    with Ahead([] if words.no_digest or words.dry_run else files) as ahead:
        from taskmerge.cli import merging  # imports torch: a second or two

        merging.run(words, suite, ahead)


def _loaded(path: Path) -> "Suite":
    """What --suite names, read without torch: its experts can be digested while that is imported."""
    from taskmerge.specs.suite_file import find_suite, load_suite

    return load_suite(find_suite(path)[0])


def _places(suite: "Suite") -> list[str]:
    """The experts of a suite, and its base, that lie on this machine; the base last: not every merge reads it."""
    places = [*(task.expert for task in suite.tasks), suite.base]
    return [str(place) for place in places if isinstance(place, Path)]
