"""`taskmerge verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmerge.cli import show
from taskmerge.cli.app import app

if TYPE_CHECKING:
    from taskmerge.merging.verify import Verification


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A merged file, index or folder.", readable=False)],
    experts: Annotated[
        list[str] | None, typer.Argument(help="Where its experts and base are: files, folders, globs.")
    ] = None,
    no_replay: Annotated[bool, typer.Option("--no-replay", help="Check header and numbers only.")] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin and .pt (weights only).")] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-j", min=1, help="Tensors merged at once.")] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Keep peak memory below this, such as 2G.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check that a merge is what it says: sound, finite, and what its recipe makes of its experts.

    The experts are found by content, under whatever name. Exit code 3 when they are not there or a tensor does not
    come out again, 7 for NaN and infinity.
    """
    import taskmerge
    from taskmerge.methods.registry import problems

    memory = show.parse_size(max_memory, "--max-memory") if max_memory else None
    with show.Bar("replaying", quiet) as progress:
        found = taskmerge.verify(
            file, experts or (), replay=not no_replay, allow_pickle=allow_pickle, threads=threads, max_memory=memory,
            progress=progress.update,
        )  # fmt: skip
    show.notices(found.notes, problems(), quiet)
    show.document(found.to_dict()) if json else print("\n".join(lines(found, quiet)))


def lines(found: "Verification", quiet: bool) -> list[str]:
    """The verdict first, then what it rests on."""
    if not found.replayed:
        return [f"{found.path}: sound and finite, not replayed ({found.tensors} tensors, {show.size(found.bytes)})"]
    how = "the whole file" if found.same_file else f"{found.tensors} tensors"
    verdict = [f"{found.path}: verified ({how} came out again, byte for byte)"]
    told = {**found.experts, **({"base": found.base} if found.base else {})}
    return verdict + ([] if quiet else [f"  {task}: {path}" for task, path in told.items()])
