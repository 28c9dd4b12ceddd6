"""`verify`: whether a merged checkpoint is sound, finite, and what its embedded recipe makes of its experts."""

import filecmp
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.disk import temporary_folder
from taskmerge.checkpoint.dtypes import DTYPES, is_float
from taskmerge.checkpoint.held import Place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import BadFile, BadNumber, NotEnough, UsageError, listed
from taskmerge.experts.arguments import Arguments
from taskmerge.experts.buffers import is_variance
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.replay import replayed
from taskmerge.merging.request import requested
from taskmerge.numerics.device import cores
from taskmerge.specs.keywords import Size

SHOWN = 5
DIFFERENCES = ("vector", "factors")
"""Kinds of files that hold differences of numbers, which may have any sign."""
UNREPLAYABLE = "`--no-replay` checks the file alone"


@dataclass(frozen=True)
class Verification:
    """What `verify` found out about a file that passed. `replayed`: the recipe gave every tensor again, byte for byte;
    `same_file`: and the whole file too (a file that was cut into shards or written again by others is not)."""

    path: str
    digest: str
    tensors: int
    bytes: int
    provenance: Mapping[str, Any] | None
    replayed: bool
    same_file: bool
    experts: Mapping[str, str]
    base: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The verification as plain values, for --json."""
        return asdict(self)


def verify(
    path: str | Path,
    experts: Arguments = (),
    *,
    replay: bool = True,
    allow_pickle: bool = False,
    threads: int | None = None,
    max_memory: Size = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Checks the header and every number of a checkpoint, finds its experts by digest, and merges them anew.

    Experts are looked for among `experts` (files, folders, globs, state dicts), beside `path` and in the working
    directory. The new merge goes to a temporary folder. Raises `BadNumber` for NaN or infinity, `BadFile` for a damaged
    file, an expert that is not found, and tensors that do not come out again, `UsageError` for a file without a recipe.
    """
    path = Path(path)
    with open_checkpoint(path, allow_pickle=allow_pickle) as checkpoint:
        record = provenance_of(checkpoint)
        _check_numbers(checkpoint, model=(record or {}).get("kind") not in DIFFERENCES)
        size = sum(spec.nbytes for spec in checkpoint.stored.values())
        plain = Verification(
            str(path), digest_of(checkpoint), len(checkpoint.specs), size, record, False, False, {}, None, ()
        )
        if not replay:
            return plain
        inputs, keywords = _replayable(path, record, experts, allow_pickle)
        keywords |= {"threads": threads, "max_memory": max_memory, "progress": progress}
        with temporary_folder() as folder:
            again = folder / "again.safetensors"
            merge_requested(requested(inputs, {**keywords, "output": again}))
            same_file, notes = _compare(checkpoint, again)
    base = keywords.get("base")
    return Verification(
        plain.path, plain.digest, plain.tensors, plain.bytes, record, True, same_file,
        {task: str(place) for task, place in inputs.items()}, None if base is None else str(base), notes,
    )  # fmt: skip


def _check_numbers(checkpoint: Checkpoint, *, model: bool) -> None:
    """Refuses a checkpoint with NaN or infinity, and a model with variances below zero, naming the tensors."""
    with ThreadPoolExecutor(cores()) as pool:
        faults = list(pool.map(lambda name: _fault(checkpoint, name, model and is_variance(name)), checkpoint.stored))
    for fault in ("NaN or infinity", "variances below zero"):
        bad = [name for name, found in zip(checkpoint.stored, faults, strict=True) if found == fault]
        if bad:
            raise BadNumber(
                f"holds {fault} in {listed(bad, SHOWN)}", where=str(checkpoint.path),
                hint="the file was damaged, or made by something else: merge again",
            )  # fmt: skip


def _fault(checkpoint: Checkpoint, name: str, variance: bool) -> str | None:
    """What numbers of a tensor cannot be, if there are such."""
    spec = checkpoint.stored[name]
    dtype = DTYPES[spec.dtype]
    if not is_float(spec.dtype) and not dtype.is_complex:
        return None
    below = False
    for piece in (piece.view(dtype) for piece in checkpoint.pieces(name)):
        values = piece.float() if piece.element_size() == 1 else piece
        if not bool(torch.isfinite(values).all()):
            return "NaN or infinity"
        below = below or (variance and bool((values < 0).any()))
    return "variances below zero" if below else None


def _replayable(
    path: Path, record: Mapping[str, Any] | None, experts: Arguments, allow_pickle: bool
) -> tuple[dict[str, Place], dict[str, Any]]:
    """Experts and keywords of the merge that is to be done again, on the kind of device that it was done on."""
    try:
        inputs, keywords = replayed(path, experts, allow_pickle=allow_pickle)
    except UsageError as error:
        raise UsageError(error.what, where=error.where, hint=UNREPLAYABLE) from None
    device = str((record or {}).get("device", "cpu"))
    if device == "cuda" and not torch.cuda.is_available():
        raise NotEnough("it was merged on a GPU, and there is none here", where=str(path), hint=UNREPLAYABLE)
    return inputs, {**keywords, "device": device}


def _compare(checkpoint: Checkpoint, again: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether the whole file came out again, and notes; `BadFile` where a tensor or the record differs."""
    if len(checkpoint.files) == 1 and filecmp.cmp(checkpoint.files[0], again, shallow=False):
        return True, ()
    with open_checkpoint(again) as replay:
        where = str(checkpoint.path)
        names = sorted({*checkpoint.stored, *replay.stored})
        differing = [name for name in names if _digest(checkpoint, name) != _digest(replay, name)]
        if differing:
            raise BadFile(
                f"{len(differing)} of {len(names)} tensors are not what the recipe gives: {listed(differing, SHOWN)}",
                where=where, hint="the file was changed after the merge, or its recipe was: merge again",
            )  # fmt: skip
        record, fresh = (dict(provenance_of(file) or {}) for file in (checkpoint, replay))
    unsaid = _unsaid(record)
    fresh = _without(fresh, unsaid)
    old, new = record.pop("version", None), fresh.pop("version", None)
    if record != fresh:
        keys = [key for key in sorted({*record, *fresh}) if record.get(key) != fresh.get(key)]
        raise BadFile(
            f"its tensors are what the recipe gives, but its provenance was changed: {listed(keys, SHOWN)}",
            where=where, hint="merge again to have a true record",
        )  # fmt: skip
    if old != new:
        return False, (f"merged by taskmerge {old}, replayed by {new}: the same tensors, another header",)
    if unsaid:
        says = f"its record does not say which {listed(unsaid)} ran, as older versions wrote it"
        return False, (f"{says}: the same tensors, another header",)
    layout = "in shards" if len(checkpoint.files) > 1 else "written again by another program"
    return False, (f"the file is {layout}: compared tensor by tensor",)


def _unsaid(record: Mapping[str, Any]) -> list[str]:
    """The options of which a recipe says null: the method's usual value ran, which is written down now."""
    return [name for name, value in record["recipe"].get("options", {}).items() if value is None]


def _without(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A record whose recipe says null of these options."""
    recipe = record["recipe"]
    return {**record, "recipe": {**recipe, "options": {**recipe["options"], **dict.fromkeys(names)}}}


def _digest(checkpoint: Checkpoint, name: str) -> str:
    return digest_of(checkpoint, [name]) if name in checkpoint.stored else ""
