"""A merge done again from its recipe, and how a file that it once wrote stands to what comes of it now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.companions import Change
from taskmerge.checkpoint.held import Place
from taskmerge.checkpoint.provenance import SEAL, metadata, sealed
from taskmerge.checkpoint.written import home_of
from taskmerge.errors import listed
from taskmerge.merging.differences import differing, each
from taskmerge.merging.heads import FOLDER as HEADS
from taskmerge.merging.heads import head_changes, heads_folder
from taskmerge.merging.merge import carry_out
from taskmerge.merging.plan import Plan
from taskmerge.merging.prepare import prepare
from taskmerge.merging.record import MergeReceipt
from taskmerge.merging.request import requested
from taskmerge.merging.rounding import LastBits, Results, last_bits
from taskmerge.merging.verification import Verification

SHOWN = 5
OWN = ("version", "arithmetic", "files")
"""Entries of a record that a merge done again need not have in common with it: its seal vouches for them."""
WORDS = {"torch": "torch {} there, {} here", "cpu": "CPU code {} there, {} here", "gpu": "{} there, {} here",
         "scipy": "scipy {} there, {} here"}  # fmt: skip
UNSAID = "where it was merged is not recorded"
OTHERWISE = "another type of CPU: its code rounds otherwise"


@dataclass(frozen=True)
class Again:
    """A merge that can be done again: its experts, the keywords of `merge`, and a folder for what comes of it."""

    inputs: Mapping[str, Place]
    keywords: Mapping[str, Any]
    folder: Path

    def merged(self, name: str, **other: Any) -> tuple[Plan, MergeReceipt]:
        """Merges into a file of this name in the folder, with `other` keywords in place of the recipe's."""
        request = requested(self.inputs, {**self.keywords, **other, "output": self.folder / name})
        prepared = prepare(request.inputs, request.spec, request.opening, request.running)
        return prepared.plan, carry_out(prepared, request.running)


def compared(checkpoint: Checkpoint, found: Verification, again: Again) -> Verification:
    """Merges again, and adds to a verification what is not the same: tensors, the record, heads."""
    plan, receipt = again.merged("again.safetensors")
    record: dict[str, Any] = dict(found.provenance or {})
    fresh: dict[str, Any] = {key: value for key, value in receipt.provenance.items() if key != SEAL}
    elsewhere = _elsewhere(record.get("arithmetic"), fresh["arithmetic"])
    with open_checkpoint(Path(receipt.paths[0])) as right:
        changed = differing(checkpoint, right, again.keywords.get("threads"))
        rounded = LastBits()
        if elsewhere and changed:
            rounded, changed = _rounded(checkpoint, right, again, plan, changed)
    heads = head_changes(again.folder / HEADS, heads_folder(home_of(checkpoint), is_folder=True))
    unsaid = _unsaid(record)
    fresh = _without(fresh, unsaid)
    changes = [*_tensor_changes(checkpoint, changed), *_record_changes(checkpoint, record, fresh), *heads]
    own = {key: record[key] for key in ("files",) if key in record}
    same = checkpoint.metadata == metadata(sealed({**fresh, **own})) and not (rounded.bits or changed)
    return replace(
        found, replayed=True, same_file=found.same_file and same and not changes, changed=(*found.changed, *changes),
        files=(*found.files, *sorted(f"{HEADS}/{file.name}" for file in (again.folder / HEADS).glob("*"))),
        numbers=sum(spec.numel for spec in checkpoint.stored.values()), entries=rounded.entries,
        last_bits=rounded.bits, elsewhere=elsewhere,
        notes=(*_notes(record, fresh, elsewhere, rounded, unsaid), *found.notes),
    )  # fmt: skip


def _elsewhere(there: Mapping[str, str] | None, here: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between the arithmetic there and here, in words; nothing where rounding has to be the same."""
    if there is None:
        return (UNSAID,)
    odd = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    named = [WORDS[name].format(there.get(name, "none"), here.get(name, "none")) for name in WORDS if name in odd]
    return tuple(named) or ((OTHERWISE,) if odd else ())


def _rounded(
    checkpoint: Checkpoint, right: Checkpoint, again: Again, plan: Plan, names: list[str]
) -> tuple[LastBits, list[str]]:
    """What rounding explains of the tensors that differ, and those that it doesn't; for that it is merged once more, in
    float64."""
    terms = _terms(plan)
    held = {name: checkpoint.stored[name] for name in names if name in checkpoint.stored}
    likely = [
        name for name, spec in held.items()
        if name in terms and (spec.dtype, spec.shape) == (right.stored[name].dtype, right.stored[name].shape)
    ]  # fmt: skip
    if not likely:
        return LastBits(), names
    _, receipt = again.merged("exact.safetensors", dtype="float64", compute_dtype="float64")
    wide = again.keywords.get("compute_dtype") == "float64"
    with open_checkpoint(Path(receipt.paths[0])) as exact:
        results, precision = Results(checkpoint, right, exact), torch.float64 if wide else torch.float32
        found = each(
            likely,
            lambda look: last_bits(results, look, terms[look.name], precision),
            again.keywords.get("threads"),
        )
    explained = {name: bits for name, bits in zip(likely, found, strict=True) if bits is not None}
    return sum(explained.values(), LastBits()), [name for name in names if name not in explained]


def _terms(plan: Plan) -> dict[str, int]:
    """By tensor that is merged, not copied, how many terms its longest sums have: over tasks, and along a matrix."""
    tasks = len(plan.tasks)
    return {
        output.name: max((tasks, *(job.unit.matrix if job.reads == "matrix" else ())))
        for job in plan.jobs
        if job.action == "merge"
        for output in job.outputs
    }


def _unsaid(record: Mapping[str, Any]) -> list[str]:
    """The options of which a recipe says null: the method's usual value ran, which is written down now."""
    return [name for name, value in record["recipe"].get("options", {}).items() if value is None]


def _without(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A record whose recipe says null of these options."""
    recipe = record["recipe"]
    return {**record, "recipe": {**recipe, "options": {**recipe["options"], **dict.fromkeys(names)}}}


def _tensor_changes(checkpoint: Checkpoint, names: list[str]) -> list[Change]:
    """The weight files whose tensors are not what the recipe gives; what no file has, the first lacks."""
    total = len(checkpoint.stored)
    by_file: dict[str, list[str]] = {}
    for name in names:
        spec = checkpoint.stored.get(name)
        by_file.setdefault((spec.file if spec else checkpoint.files[0]).name, []).append(name)
    return [
        Change(file, f"{len(own)} of {total} tensors are not what the recipe gives: {listed(own, SHOWN)}")
        for file, own in by_file.items()
    ]


def _record_changes(checkpoint: Checkpoint, record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[Change]:
    """Entries of the record that the recipe does not give."""
    keys = [key for key in sorted({*record, *fresh} - {*OWN}) if record.get(key) != fresh.get(key)]
    return [Change(checkpoint.files[0].name, f"its provenance was changed: {listed(keys, SHOWN)}")] if keys else []


def _notes(
    record: Mapping[str, Any], fresh: Mapping[str, Any], elsewhere: tuple[str, ...], rounded: LastBits,
    unsaid: Sequence[str],
) -> list[str]:  # fmt: skip
    """What differs without being a change."""
    old, new = record.get("version"), fresh.get("version")
    notes = [f"merged by taskmerge {old}, replayed by {new}: another header"] if old != new else []
    if unsaid:
        notes.append(f"its record does not say which {listed(unsaid)} ran, as older versions wrote it: another header")
    return notes if rounded.bits or not elsewhere else [*notes, f"{'; '.join(elsewhere)}: the same bytes all the same"]
