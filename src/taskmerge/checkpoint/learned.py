"""What adaptation has learnt, as files: coefficients of tensors × tasks, masks of components or entries as bits."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taskmerge.checkpoint.adapted import AGAIN, PLACES
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.errors import BadFile, listed
from taskmerge.methods.composed import Learned

COEFFICIENTS, MASKS = PLACES["coefficients"], PLACES["masks"]
BITS = 8


# --- writing ---------------------------------------------------------------------------------------------------


def write_learned(folder: Path, learned: Learned) -> None:
    """Writes `coefficients.safetensors`, and `masks.safetensors` if there are masks, over what is there.

    The same contents give the same bytes. Raises `BadNumber` for NaN or infinity, `BadOutput` where the folder cannot
    be written.
    """
    record = {"kind": "coefficients", "tasks": [{"name": task} for task in learned.tasks]}
    coefficients = {name: tensor.float() for name, tensor in learned.coefficients.items()}
    write_tensors(folder / COEFFICIENTS, coefficients, record, overwrite=True)
    if not learned.masks:
        (folder / MASKS).unlink(missing_ok=True)  # an earlier run's
        return
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1)) for name, mask in learned.masks.items()}
    counts = {name: mask.shape[-1] for name, mask in learned.masks.items()}
    write_tensors(folder / MASKS, packed, {**record, "kind": "masks", "components": counts}, overwrite=True)


# --- reading ---------------------------------------------------------------------------------------------------


def learned_of(folder: Path, digest: str) -> Learned:
    """What a folder holds, if it has this digest. Raises `BadFile` otherwise."""
    learned = read_learned(folder)
    if learned.digest != digest:
        what = f"was made with other coefficients or masks (it says {digest}, these are {learned.digest})"
        raise BadFile(what, where=str(folder), hint="put back the files that `taskmerge adapt` wrote, or run it again")
    return learned


def read_learned(folder: Path) -> Learned:
    """What `write_learned` has written into a folder. Raises `BadFile` for anything else."""
    alone = read_coefficients(folder / COEFFICIENTS)
    tasks, coefficients = alone.tasks, alone.coefficients
    if not (folder / MASKS).exists():
        return alone
    with open_checkpoint(folder / MASKS) as checkpoint:
        if _tasks(checkpoint, "masks") != tasks:
            raise _bad(checkpoint, f"its tasks are not those of {COEFFICIENTS}")
        strangers = checkpoint.specs.keys() - coefficients.keys()
        if strangers:
            raise _bad(checkpoint, f"{COEFFICIENTS} lacks {listed(sorted(strangers))}")
        counts = _counts(checkpoint)
        masks = {name: _masks(checkpoint, name, len(tasks), count) for name, count in counts.items()}
        checkpoint.check_unchanged()
    return Learned(tasks, coefficients, masks)


def read_coefficients(file: Path) -> Learned:
    """The coefficients in a file, without the masks that may have been learnt beside them. Raises `BadFile`."""
    with open_checkpoint(file) as checkpoint:
        tasks = _tasks(checkpoint, "coefficients")
        coefficients = {name: _coefficients(checkpoint, name, len(tasks)) for name in checkpoint.specs}
        checkpoint.check_unchanged()
    return Learned(tasks, coefficients)


def _tasks(checkpoint: Checkpoint, kind: str) -> tuple[str, ...]:
    """The tasks that a file is of, if it is of this kind."""
    record = provenance_of(checkpoint) or {}
    if record.get("kind") != kind:
        raise _bad(checkpoint, f"holds no {kind} that taskmerge wrote")
    entries = record.get("tasks", [])
    tasks = tuple(str(entry["name"]) for entry in entries) if isinstance(entries, list) else ()
    if not tasks or list(tasks) != sorted(set(tasks)):
        raise _bad(checkpoint, "its list of tasks is malformed")
    return tasks


def _coefficients(checkpoint: Checkpoint, name: str, tasks: int) -> Tensor:
    """The coefficients [T] of one tensor; read once their shape is known to be right."""
    spec = checkpoint.specs[name]
    if spec.dtype != "F32" or spec.shape != (tasks,):
        raise _bad(checkpoint, f"{spec.dtype} {list(spec.shape)} where F32 [{tasks}] is due", name)
    coefficients = checkpoint.tensor(name)
    if not bool(torch.isfinite(coefficients).all()):
        raise _bad(checkpoint, "a coefficient is NaN or infinity", name)
    return coefficients


def _counts(checkpoint: Checkpoint) -> dict[str, int]:
    """How many components, or entries, the masks of each tensor are of."""
    counts = (provenance_of(checkpoint) or {}).get("components")
    if not isinstance(counts, dict) or counts.keys() != checkpoint.specs.keys():
        raise _bad(checkpoint, "its metadata does not say how many components its masks are of")
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise _bad(checkpoint, f"{count!r} is no number of components", name)
    return dict(sorted(counts.items()))


def _masks(checkpoint: Checkpoint, name: str, tasks: int, count: int) -> Tensor:
    """The masks of one tensor: bool [M, T, k] of components, or [1, 1, n] of entries."""
    spec, width = checkpoint.specs[name], -(-count // BITS)
    fits = len(spec.shape) == 3 and (spec.shape[1:] == (tasks, width) or spec.shape == (1, 1, width))
    if spec.dtype != "U8" or not fits:
        raise _bad(checkpoint, f"{spec.dtype} {list(spec.shape)} where U8 [M, {tasks}, {width}] is due", name)
    bits = np.unpackbits(checkpoint.tensor(name).numpy(), axis=-1)
    if bits[..., count:].any():
        raise _bad(checkpoint, f"it has bits behind its {count} components", name)
    return torch.from_numpy(bits[..., :count].astype(bool))


def _bad(checkpoint: Checkpoint, what: str, name: str | None = None) -> BadFile:
    return BadFile(what, where=f"{checkpoint.path}: `{name}`" if name else str(checkpoint.path), hint=AGAIN)
