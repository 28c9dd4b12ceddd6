"""`taskmerge adapt`."""

from taskmerge.cli.adapt_words import PANELS, AdaptWords
from taskmerge.cli.method_command import MethodCommand
from taskmerge.cli.options import METHOD_OPTIONS
from taskmerge.cli.words import command


@command(AdaptWords, "adapt", panels=PANELS, cls=MethodCommand, context_settings=METHOD_OPTIONS)
def adapt(words: AdaptWords) -> None:
    """Adapt a merge of a suite's experts on unlabelled items, and print the folder that was written.

    Options of the method (and of the one that --init names) follow the same way (`--rank 0.16`): `taskmerge methods
    NAME` lists them. No label is read, except to score the written model on --split at the end.
    """
    from taskmerge.methods.listing import check_adaptive

    for name, flag in ((words.method, "--method"), (words.with_, "--with")):
        if name is not None:
            check_adaptive(name, flag)
    from taskmerge.cli import adapting  # imports torch: a second or two

    adapting.run(words)
