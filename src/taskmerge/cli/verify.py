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
    from taskmerge.merging.verification import Verification


@dataclass(frozen=True, kw_only=True)
class VerifyWords:
    """What was said on the command line, option by option; what was not is its default."""

    file: Annotated[Path, typer.Argument(help="A merged file, index or folder.", readable=False)]
    experts: Annotated[
        list[str] | None, typer.Argument(help="Where its experts and base are: files, folders, globs.")
    ] = None
    no_replay: Annotated[bool, option("Check header, numbers and what lies beside only.", "--no-replay")] = False
    allow_pickle: options.AllowPickle = False
    threads: options.Threads = None
    max_memory: options.MaxMemory = None
    json: options.Json = False
    quiet: options.Quiet = False
    debug: options.Debug = False


@command(VerifyWords, "verify")
def verify(words: VerifyWords) -> None:
    """Check that a merge is what it says: sound, finite, and what its recipe makes of its experts.

    The experts are found by content, under whatever name. The answer is "same bytes", "same up to N last bits" where
    another torch or another type of CPU merged it, or "changed" with the files (exit code 3): weights, index,
    configuration, tokenizer, heads, card, whatever the merge wrote. Exit code 3 too when experts are not there, 7 for
    NaN and infinity.
    """
    import taskmerge
    from taskmerge.merging.verification import Changed
    from taskmerge.methods.registry import problems

    try:
        with Bar("replaying", words.quiet) as bar:
            verification = taskmerge.verify(
                words.file, words.experts or (), replay=not words.no_replay, allow_pickle=words.allow_pickle,
                threads=words.threads, max_memory=words.max_memory, progress=bar.update,
            )  # fmt: skip
    except Changed as error:
        show.notices(error.verification.notes, problems(), words.quiet)
        if words.json:
            show.document(error.verification.to_dict())
        raise
    show.notices(verification.notes, problems(), words.quiet)
    show.document(verification.to_dict()) if words.json else show.page(lines(verification, words.quiet))


def lines(verification: "Verification", quiet: bool) -> list[str]:
    """The verdict first, then what it rests on."""
    path, tensors = verification.path, f"{verification.tensors} tensors"
    if not verification.replayed:
        return [f"{path}: sound and finite, not replayed ({tensors}, {show.size(verification.bytes)})"]
    verdict = [f"{path}: {_verdict(verification)}"]
    inputs = {**verification.experts, **({"base": verification.base} if verification.base else {})}
    return verdict + ([] if quiet else [f"  {task}: {place}" for task, place in inputs.items()])


def _verdict(verification: "Verification") -> str:
    """The answer, and how much of what was written it is about."""
    files = len(verification.files)
    if verification.last_bits:
        bits = "1 last bit" if verification.last_bits == 1 else f"{verification.last_bits} last bits"
        differing = f"{verification.entries:,} of {verification.numbers:,} numbers differ by rounding"
        return f"same up to {bits}, verified ({'; '.join(verification.elsewhere)}: {differing})"
    if verification.same_file:
        again = "the whole file" if files == 1 else f"all {files} files"
    else:
        again = f"{verification.tensors} tensors"
    return f"same bytes, verified ({again} came out again, byte for byte)"
