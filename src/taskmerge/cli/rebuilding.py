"""What `taskmerge merge --from` does: finds a folder's experts, merges them as it says, writes file or folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmerge.checkpoint.ahead import Ahead
from taskmerge.cli import merging, show
from taskmerge.cli.merge_words import MergeWords
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import Request
from taskmerge.workflows.rebuild import carry_out_rebuilding, check_alone, rebuilding


def run(folder: Path, inputs: Sequence[str], keywords: Mapping[str, Any], words: MergeWords, ahead: Ahead) -> None:
    """Carries out one `merge --from`; `keywords` are those of `merge` that were said."""
    check_alone(vars(words))
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
    merging.finish(receipt, (*announced, *what.warnings), words)
