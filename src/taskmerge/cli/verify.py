"""`taskmerge verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmerge.cli import options, show
from taskmerge.cli.meter import Bar
from taskmerge.cli.options import option
from taskmerge.cli.words import command

if TYPE_CHECKING:
    from taskmerge.merging.verify import Verification


@dataclass(frozen=True, kw_only=True)
class VerifyWords:
    """What was said on the command line, option by option; what was not is its default."""

    file: Annotated[Path, typer.Argument(help="A merged file, index or folder.", readable=False)]
    experts: Annotated[
        list[str] | None, typer.Argument(help="Where its experts and base are: files, folders, globs.")
    ] = None
    no_replay: Annotated[bool, option("Check header and numbers only.", "--no-replay")] = False
    allow_pickle: options.AllowPickle = False
    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.Json = False
    quiet: options.Quiet = False
    debug: options.Debug = False


@command(VerifyWords, "verify")
def verify(words: VerifyWords) -> None:
    """Check that a merge is what it says: sound, finite, and what its recipe makes of its experts.

    The experts are found by content, under whatever name. Exit code 3 when they are not there or a tensor does not
    come out again, 7 for NaN and infinity.
    """
    import taskmerge
    from taskmerge.methods.registry import problems

    with Bar("replaying", words.quiet) as bar:
        verification = taskmerge.verify(
            words.file, words.experts or (), replay=not words.no_replay, allow_pickle=words.allow_pickle,
            threads=words.threads, max_memory=words.max_memory, progress=bar.update,
        )  # fmt: skip
    show.notices(verification.notes, problems(), words.quiet)
    show.document(verification.to_dict()) if words.json else show.page(lines(verification, words.quiet))


def lines(verification: "Verification", quiet: bool) -> list[str]:
    """The verdict first, then what it rests on."""
    path, tensors = verification.path, f"{verification.tensors} tensors"
    if not verification.replayed:
        return [f"{path}: sound and finite, not replayed ({tensors}, {show.size(verification.bytes)})"]
    again = "the whole file" if verification.same_file else tensors
    verdict = [f"{path}: verified ({again} came out again, byte for byte)"]
    inputs = {**verification.experts, **({"base": verification.base} if verification.base else {})}
    return verdict + ([] if quiet else [f"  {task}: {place}" for task, place in inputs.items()])
