"""What `taskmerge merge --from` does: finds a folder's experts, merges them as it says, writes file or folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import merging, show
from taskmerge.cli.merge_words import MergeWords
from taskmerge.errors import UsageError
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import Request
from taskmerge.workflows.rebuild import carry_out_rebuilding, rebuilding

OTHERS = ("recipe", "suite", "choose")
"""Words of the command that name another source of what is merged."""


def run(folder: Path, inputs: Sequence[str], keywords: Mapping[str, Any], words: MergeWords, ahead: Ahead) -> None:
    """Carries out one `merge --from`; `keywords` are those of `merge` that were said."""
    for name in OTHERS:
        if getattr(words, name) is not None:
            raise UsageError(f"`--{name}` does not go with --from", where=f"--{name}", hint="give one of the two")
    what = rebuilding(folder, inputs, keywords, task=words.task)
    if words.dry_run:
        merging.dry_run(what.request, words)
        return
    announced: list[str] = []

    def merge(request: Request) -> MergeReceipt:
        receipt, told = merging.merged(request, words, ahead)
        announced.extend(told)
        return receipt

    show.notices((), what.warnings, words.quiet)
    receipt = carry_out_rebuilding(what, merge)
    merging.finish(receipt, (*announced, *what.warnings), receipt.to_dict(), words)
