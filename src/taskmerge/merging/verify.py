"""`verify`: whether a merged checkpoint is sound, finite, and, with all that was written beside it, what its embedded
recipe makes of its experts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.adapted import is_adapted
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.companions import Change
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.disk import temporary_folder
from taskmerge.checkpoint.dtypes import DTYPES, is_float
from taskmerge.checkpoint.held import Place
from taskmerge.checkpoint.provenance import is_damaged, provenance_of
from taskmerge.checkpoint.written import home_of, look_at
from taskmerge.errors import BadNumber, NotEnough, TaskmergeError, UsageError, listed
from taskmerge.experts.arguments import Arguments
from taskmerge.experts.buffers import is_variance
from taskmerge.merging.again import Again, compared
from taskmerge.merging.differences import Look, each
from taskmerge.merging.heads import FOLDER as HEADS
from taskmerge.merging.replay import replayed
from taskmerge.merging.verification import Changed, Verification
from taskmerge.specs.keywords import Size

SHOWN = 5
DIFFERENCES = ("vector", "factors")
"""Kinds of files that hold differences of numbers, which may have any sign."""
UNREPLAYABLE = "`--no-replay` checks the file alone"


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
    """Checks a checkpoint, its record, and what was written beside it; finds its experts by digest, merges them anew.

    Experts are looked for among `experts` (files, folders, globs, state dicts), beside `path` and in the working
    directory. The new merge goes to a temporary folder. Where another torch or another type of CPU merged it, last bits
    may differ as far as rounding explains. Raises `Changed` (a `BadFile`) for files that are not what was written,
    `BadNumber` for NaN or infinity, `BadFile` for a damaged file and an expert that is not found, `UsageError` where
    there is no recipe.
    """
    path = Path(path)
    with open_checkpoint(path, allow_pickle=allow_pickle) as checkpoint:
        record = provenance_of(checkpoint)
        _check_numbers(checkpoint, model=(record or {}).get("kind") not in DIFFERENCES, threads=threads)
        size = sum(spec.nbytes for spec in checkpoint.stored.values())
        found = Verification(str(path), digest_of(checkpoint), len(checkpoint.specs), size, record)
        if record is not None:
            found = _looked_at(checkpoint, record, found)
        if replay:
            running = {"threads": threads, "max_memory": max_memory, "progress": progress}
            try:
                inputs, keywords = _replayable(path, record, experts, allow_pickle)
                found = _replay(checkpoint, found, inputs, {**keywords, **running})
            except TaskmergeError as error:
                if not found.changed:
                    raise
                raise Changed(found) from error
        checkpoint.check_unchanged()
    if found.changed:
        raise Changed(found)
    return found


def _check_numbers(checkpoint: Checkpoint, *, model: bool, threads: int | None) -> None:
    """Refuses a checkpoint with NaN or infinity, and a model with variances below zero, naming the tensors."""
    names = list(checkpoint.stored)
    faults = each(names, lambda look: _fault(checkpoint, look, model and is_variance(look.name)), threads)
    for fault in ("NaN or infinity", "variances below zero"):
        bad = [name for name, found in zip(names, faults, strict=True) if found == fault]
        if bad:
            raise BadNumber(
                f"holds {fault} in {listed(bad, SHOWN)}", where=str(checkpoint.path),
                hint="the file was damaged, or made by something else: merge again",
            )  # fmt: skip


def _fault(checkpoint: Checkpoint, look: Look, variance: bool) -> str | None:
    """What numbers of a tensor cannot be, if there are such."""
    spec = checkpoint.stored[look.name]
    dtype = DTYPES[spec.dtype]
    if not is_float(spec.dtype) and not dtype.is_complex:
        return None
    below = False
    for piece in (piece.view(dtype) for piece in look.through(checkpoint.pieces(look.name))):
        values = piece.float() if piece.element_size() == 1 else piece
        if not bool(torch.isfinite(values).all()):
            return "NaN or infinity"
        below = below or (variance and bool((values < 0).any()))
    return "variances below zero" if below else None


def _looked_at(checkpoint: Checkpoint, record: Mapping[str, Any], found: Verification) -> Verification:
    """What is known of record, headers, index and the files beside them without the experts. Raises `Changed` for a
    record that was damaged: nothing that it says can be carried out."""
    if is_damaged(checkpoint):
        raise Changed(replace(found, changed=(Change(checkpoint.files[0].name, "its record was changed"),)))
    recipe = record.get("recipe")
    keeps = isinstance(recipe, dict) and recipe.get("heads") == "keep"
    seen = look_at(checkpoint, record, HEADS if keeps else None)
    notes = [] if seen.canonical else ["written again by another program: compared tensor by tensor"]
    if seen.others:
        notes.append(f"not written by the merge, and not opened: {listed(seen.others, plain=True)}")
    if is_adapted(home_of(checkpoint)):
        notes.append("the model of an adapted folder: what was learnt is compared, heads and other parts are not")
    return replace(found, files=seen.files, changed=seen.changes, same_file=seen.canonical, notes=tuple(notes))


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


def _replay(
    checkpoint: Checkpoint, found: Verification, inputs: Mapping[str, Place], keywords: Mapping[str, Any]
) -> Verification:
    """The verification with what comes of merging again."""
    base = keywords.get("base")
    places = {task: str(place) for task, place in inputs.items()}
    found = replace(found, experts=places, base=None if base is None else str(base))
    with temporary_folder() as folder:
        return compared(checkpoint, found, Again(inputs, keywords, folder))
