"""What taskmerge itself wrote among the inputs: this run's own outputs, and earlier merges of the same experts."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from shlex import quote

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.held import Held, Place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.weights import SHARD
from taskmerge.errors import Mismatch, TaskmergeError, UsageError
from taskmerge.experts.lora_names import is_adapter
from taskmerge.experts.sources import Source


def is_own_output(path: Path, outputs: Sequence[Path], kinds: Collection[str], *, allow_pickle: bool = False) -> bool:
    """Whether an input lies where this run writes. An expert would be lost there: only earlier outputs of one of
    `kinds`, and what cannot be read, may be replaced; anything else is refused."""
    if not any(_written_by(path, output) for output in outputs):
        return False
    if _kind_of(path, allow_pickle) not in kinds:
        raise UsageError(
            "it is an input and the output: it would be lost", where=str(path),
            hint=f"choose another output with -o; if it is no expert, `{_skip(path)}` lets it be replaced",
        )  # fmt: skip
    return True


def _skip(path: Path) -> str:
    """The option that leaves an input out, as a shell takes it."""
    return f"--skip-input {quote(path.name)}"


def _kind_of(path: Path, allow_pickle: bool) -> object:
    """What taskmerge wrote a checkpoint as; "" for what others wrote, "merge" for what cannot be read."""
    if is_adapter(path):
        return ""
    try:
        with open_checkpoint(path, allow_pickle=allow_pickle) as checkpoint:
            return (provenance_of(checkpoint) or {}).get("kind", "")
    except TaskmergeError:  # cannot be merged either
        return "merge"


def same_place(first: Place, second: Place) -> bool:
    """Whether two inputs are one: a file, or a state dict in memory."""
    if isinstance(first, Held) or isinstance(second, Held):
        return isinstance(first, Held) and isinstance(second, Held) and first.tensors is second.tensors
    return same_file(first, second)


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    return os.path.exists(first) and os.path.exists(second) and first.samefile(second)


def _written_by(path: Path, output: Path) -> bool:
    """Whether a path is an output, or the weight file, a shard or the index of one."""
    folder = os.path.isdir(output) or output.suffix != ".safetensors"  # a new folder replaces nothing
    stem, home = ("model", output) if folder else (output.stem, output.absolute().parent)
    parts = rf"{re.escape(stem)}({SHARD})?\.safetensors(\.index\.json)?"
    return same_file(path, output) or (
        same_file(path.absolute().parent, home) and re.fullmatch(parts, path.name) is not None
    )


def earlier_result(merged: Source, experts: Mapping[str, Source]) -> str:
    """The warning with which an earlier merge is left out, if the experts in its record are all among `experts` by
    content; any other merged output is refused."""
    tasks = merged.record.get("tasks")
    entries = [entry for entry in tasks if isinstance(entry, dict)] if isinstance(tasks, list) else []
    names = ", ".join(str(entry.get("name")) for entry in entries)
    tensors = _all_tensors(Path(merged.where), merged.specs)
    if entries and all(_is_here(entry, experts, tensors) for entry in entries):
        return f"left out {merged.where}: it is an earlier merge of {names}"
    raise Mismatch(
        f"it is the result of an earlier merge ({names}), not a fine-tuned expert", where=merged.where,
        hint=f"`{_skip(Path(merged.where))}` leaves it out, `--allow-merged` merges it like any expert",
    )  # fmt: skip


def _all_tensors(path: Path, tensors: Collection[str]) -> Collection[str]:
    """The names of the whole merged model of which a file may be one shard."""
    index = path.with_name(re.sub(rf"{SHARD}\.safetensors$", ".safetensors.index.json", path.name))
    if index == path or not index.exists():
        return tensors
    with open_checkpoint(index) as whole:
        return set(whole.specs)


def _is_here(entry: Mapping[str, object], experts: Mapping[str, Source], merged: Collection[str]) -> bool:
    """Whether an entry of a provenance is among the experts, by content; the one of its name is tried first."""
    tried = sorted(experts, key=lambda task: (task != entry.get("name"), task))
    return any(experts[task].matches(entry, merged) for task in tried)
