"""Options that several commands share, each declared once: its names, its help, and what reads it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from taskmerge.cli.words import Reads
from taskmerge.specs.values import parse_items, parse_names, parse_pairs, parse_size, parse_threads

INPUT, COST = "How inputs are understood", "Where it goes, and what it may cost"
"""Parts of the help pages of commands that merge."""
METHOD_OPTIONS = {"ignore_unknown_options": True}
"""Settings of commands whose methods have options of their own: they stay among the inputs."""


def option(help: str, *names: str, completed: str | None = None) -> Any:  # typer's own word
    """What Typer is told of an option, which stands in an annotation; help texts name the defaults themselves.

    `completed` is the function of `cli/completing.py` that knows its values.
    """
    complete = None if completed is None else completion(completed)
    return typer.Option(*names, help=help, show_default=False, readable=False, autocompletion=complete)


def completion(name: str) -> Callable[[Any, str], Any]:
    """What Typer asks for the values of an option or an argument, by a function of `cli/completing.py`."""

    def complete(ctx: typer.Context, incomplete: str) -> Any:
        function = getattr(import_module("taskmerge.cli.completing"), name)
        told = function(ctx) if name == "values" else function()
        return [word for word in told if word[0].startswith(incomplete)]

    return complete


# --- how inputs are understood ---------------------------------------------------------------------------------

Base = Annotated[Path | None, option("The checkpoint that the experts were fine-tuned from.")]
KeepFrom = Annotated[
    tuple[tuple[str, str], ...] | None,
    option("Copy tensors unmerged: base or a task, and a glob (NAME GLOB, repeatable)."),
    Reads(parse_pairs, list[str]),
]
Include = Annotated[list[str] | None, option("Only tensors whose names match (glob, repeatable).")]
Exclude = Annotated[list[str] | None, option("Not tensors whose names match (glob, repeatable).")]
OnMissing = Annotated[str | None, option("Tensors that some input lacks: refuse, base or skip.")]
OnBuffer = Annotated[str | None, option("Integer tensors that differ: refuse or first.")]
Heads = Annotated[str | None, option("Task heads: refuse shapes that differ, or keep each whole, per task.")]
StripPrefix = Annotated[str | None, option("Prefix to take off tensor names.")]
Map = Annotated[list[str] | None, option("Read tensors under other names, 'FROM* = TO*' (repeatable).", "--map")]
SkipInput = Annotated[list[str] | None, option("Leave out inputs of this name (or glob; repeatable).")]
KeepBase = Annotated[bool, option("Take the base as an expert too.", "--keep-base")]
AllowMerged = Annotated[bool, option("Take earlier results like experts.", "--allow-merged")]
AllowPickle = Annotated[bool, option("Read .bin and .pt state dicts (weights only).", "--allow-pickle")]

# --- arithmetic and cost ---------------------------------------------------------------------------------------

ComputeDtype = Annotated[str | None, option("Type of the arithmetic: float32 or float64.")]
Svd = Annotated[str | None, option("Factorisation: exact or randomized.")]
Device = Annotated[str | None, option("auto, cpu or cuda:N (default: auto).")]
Threads = Annotated[
    int | None, option("Tensors at once (default: all cores).", "--threads", "-j"), Reads(parse_threads, int)
]
MaxMemory = Annotated[int | None, option("Keep peak memory below this, such as 2G."), Reads(parse_size)]
ShardSize = Annotated[int | None, option("Largest size of one file, such as 5GB."), Reads(parse_size)]

Names = tuple[str, ...] | None
NAMES, ITEMS = Reads(parse_names), Reads(parse_items, int)
"""Read lists of names, and how many items to take: each command has its own options of these kinds."""

# --- what is written and printed -------------------------------------------------------------------------------

ConfigFrom = Annotated[str | None, option("Whose configuration a folder gets: base, or a task's name.")]
TokenizerFrom = Annotated[str | None, option("Whose tokenizer a folder gets: base, or a task's name.")]
Overwrite = Annotated[bool, option("Replace existing files.", "--overwrite")]
Json = Annotated[bool, option("Print one JSON document.", "--json")]
JsonReceipt = Annotated[bool, option("Print one JSON document instead of paths.", "--json")]
Quiet = Annotated[bool, option("Say nothing but the result and errors.", "--quiet", "-q")]
Debug = Annotated[bool, option("Show tracebacks.", "--debug")]
