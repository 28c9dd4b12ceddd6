"""Whether what adaptation has learnt is there where a method runs it, and fits the experts and their tensors."""

from collections.abc import Sequence

import torch

from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.merging.plan import TensorJob
from taskmerge.methods.composed import Learned
from taskmerge.specs.merge import MergeSpec

OTHER = "it was learnt of other experts, or of other options: merge with those"


def check_asked(spec: MergeSpec) -> None:
    """Refuses a method that runs what adaptation has learnt without it, and any other method with it."""
    last = spec.chain()[-1]
    if last.learned and spec.learned is None:
        raise UsageError(
            f"`{last.name}` runs what adaptation has learnt, and cannot be used by hand", where="--method",
            hint="`taskmerge adapt` makes such a merge, and `taskmerge merge --from FOLDER` makes it again",
        )  # fmt: skip
    if spec.learned is not None and not last.learned:
        raise UsageError(
            f"`{last.name}` does not run what adaptation has learnt", where="--method",
            hint="leave out `learned`, or leave the method to the recipe that has it",
        )  # fmt: skip


def check_fits(learned: Learned, tasks: Sequence[str], jobs: Sequence[TensorJob]) -> None:
    """Raises `Mismatch` unless it is of these tasks, and of tensors (and matrices) that are merged."""
    if list(learned.tasks) != list(tasks):
        raise Mismatch(
            f"coefficients were learnt of {listed(learned.tasks, plain=True)}; "
            f"these experts are {listed(tasks, plain=True)}", hint=OTHER,
        )  # fmt: skip
    merged = {job.name: job for job in jobs if job.action == "merge"}
    strangers = sorted({*learned.coefficients, *learned.masks} - merged.keys())
    if strangers:
        raise Mismatch(f"coefficients or masks were learnt of {listed(strangers)}, not merged here", hint=OTHER)
    for name, coefficients in learned.coefficients.items():
        if coefficients.shape != (len(tasks),) or coefficients.dtype != torch.float32:
            what = f"coefficients {list(coefficients.shape)} {coefficients.dtype}, not one float32 number a task"
            raise Mismatch(what, where=f"`{name}`", hint=OTHER)
    for name, masks in learned.masks.items():
        if merged[name].factored:
            _check_masks(merged[name], tuple(masks.shape), len(tasks))
        else:
            _check_entries(merged[name], tuple(masks.shape), learned.shares[name])


def _check_masks(job: TensorJob, shape: tuple[int, ...], tasks: int) -> None:
    """Masks [M, T, k] are of a tensor that is factored, and of no more components than it can have."""
    where, unit = f"`{job.name}`", job.unit
    if shape[:-1] != (unit.matrices, tasks):
        what = f"masks of shape {list(shape)} are not of its {unit.matrices} matrices and {tasks} tasks"
        raise Mismatch(what, where=where, hint=OTHER)
    if shape[-1] > min(unit.matrix):
        what = f"masks are of {shape[-1]} components, its matrices have {min(unit.matrix)}"
        raise Mismatch(what, where=where, hint=OTHER)


def _check_entries(job: TensorJob, shape: tuple[int, ...], share: float) -> None:
    """A mask [1, 1, n] is of every entry of a tensor that is not factored, and has a mean to be divided by."""
    where, count = f"`{job.name}`", job.numel
    if shape[:-1] != (1, 1):
        raise Mismatch("masks were learnt of its components, and it is not factored here", where=where, hint=OTHER)
    if shape[-1] != count:
        raise Mismatch(f"a mask is of {shape[-1]} entries, it has {count}", where=where, hint=OTHER)
    if not share:
        hint = "masks that `taskmerge adapt` writes keep something of every tensor"
        raise Mismatch("its mask keeps no entry: it is divided by its mean", where=where, hint=hint)
