"""`doctor`: one look at experts and base before any merge."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from taskmerge.checkpoint.header import TensorSpec
from taskmerge.checkpoint.held import open_place
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.diagnosis.commands import commands
from taskmerge.diagnosis.findings import LEVELS
from taskmerge.diagnosis.kinship import Closeness, Kinship
from taskmerge.diagnosis.measure import measure
from taskmerge.diagnosis.remarks import remarks
from taskmerge.diagnosis.report import Diagnosis, Entry
from taskmerge.diagnosis.trial import Openings, tried
from taskmerge.errors import TaskmergeError
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.arguments import Arguments, State, checked, placed
from taskmerge.experts.compare import selected
from taskmerge.experts.inputs import SetAside
from taskmerge.experts.lora_files import open_adapter
from taskmerge.experts.lora_names import is_adapter
from taskmerge.experts.sources import Source
from taskmerge.merging.costs import budget
from taskmerge.merging.options import READERS
from taskmerge.numerics.memory import return_large_blocks
from taskmerge.specs.keywords import Globs, Size, given, read_keywords
from taskmerge.specs.merge import OnBuffer, OnMissing

RUNNING = ("threads", "max_memory", "progress")
"""Keywords that are none of what is asked of a merge."""


def doctor(
    inputs: Arguments, *,
    base: str | Path | State | None = None, keep_base: bool | None = None, include: Globs = None,
    exclude: Globs = None, keep_from: Sequence[tuple[str, str]] | None = None, on_missing: OnMissing | None = None,
    on_buffer: OnBuffer | None = None, heads: Literal["refuse", "keep"] | None = None, strip_prefix: str | None = None,
    map: Globs = None, skip_input: Globs = None, allow_merged: bool | None = None, allow_pickle: bool | None = None,
    config_from: str | None = None, tokenizer_from: str | None = None, threads: int | None = None,
    max_memory: Size = None, progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:  # fmt: skip
    """Looks at experts and their base before any merge: whether they belong together, what a merge would refuse or
    leave out, and which commands follow (none for state dicts in memory).

    Inputs and options are those of `merge`, and mean the same. Reads headers, and every weight once; writes nothing.
    What a merge would stop at is found by its own plan, and is no error here but a finding. Raises `UsageError` for
    wrong options, `BadFile` for names of what is not there, `NotEnough` where `max_memory` is too little.
    """
    asked = read_keywords(READERS, given(locals(), ("inputs",)))
    workers, limit, heard = (asked.pop(name, None) for name in RUNNING)
    arguments = _held(checked(inputs))
    with ExitStack() as stack:
        openings = Openings(stack)
        first = tried(openings, arguments, asked)
        found = first.opened.inputs
        names = selected({name for expert in found.experts for name in expert.specs}, first.spec)
        return_large_blocks()
        measured = measure(found, names, budget(workers, limit), heard)
        bound = frozenset(expert.task for expert in found.experts if expert.kind != "weight")
        kinship = Kinship(measured, bound)
        follow = commands(openings, arguments, asked, first, kinship)
        found.check_unchanged()
        places = {expert.task: expert.where for expert in found.experts}
        findings = [*first.findings, *remarks(kinship, found.base.where if found.base else "", places)]
        entries = [_entry(expert, kinship.closeness.get(expert.task)) for expert in found.experts]
        pickles = bool(asked.get("allow_pickle"))
        entries += [_aside(one, pickles) for one in first.opened.aside if one.task is not None]
        origin = [_entry(found.base)] if found.base else []
        origin += [_aside(one, pickles) for one in first.opened.aside if one.task is None]
    return Diagnosis(
        next(iter(origin), None), tuple(sorted(entries, key=lambda entry: entry.name)), kinship.pairs,
        tuple(kinship.families), tuple(sorted(findings, key=lambda one: LEVELS.index(one.level))), tuple(follow),
        measured.tensors, measured.parameters, len(measured.matrices),
    )  # fmt: skip


def _held(inputs: Arguments) -> Arguments:
    """The arguments, state dicts as the one place each that they are."""
    return {task: placed(task, value) for task, value in inputs.items()} if isinstance(inputs, Mapping) else inputs


# --- what headers say of one input -----------------------------------------------------------------------------


def _entry(source: Source, closeness: Closeness | None = None) -> Entry:
    """An input that was opened."""
    adapter = source.adapter if isinstance(source, AdapterSource) else None
    kind = "adapter" if adapter else str(source.record.get("kind", "checkpoint"))
    held = adapter.checkpoint.stored if adapter else source.stored
    return Entry(
        source.task, source.where, kind, True, *_counts(held), adapter.trained_on if adapter else None, closeness
    )


def _aside(one: SetAside, allow_pickle: bool) -> Entry:
    """An input that was not taken, as far as its headers can be read."""
    name, kind = one.task or "base", "adapter" if is_adapter(one.path) else "checkpoint"
    try:
        if kind == "adapter":
            adapter = open_adapter(one.path, allow_pickle=allow_pickle)
            checkpoint, trained_on = adapter.checkpoint, adapter.trained_on
        else:
            checkpoint, trained_on = open_place(one.path, allow_pickle=allow_pickle), None
            kind = str((provenance_of(checkpoint) or {}).get("kind", kind))
    except TaskmergeError:
        return Entry(name, str(one.path), kind, False, None, None, None, {})
    with checkpoint:
        return Entry(name, str(one.path), kind, False, *_counts(checkpoint.stored), trained_on)


def _counts(stored: Mapping[str, TensorSpec]) -> tuple[int, int, int, dict[str, int]]:
    """Tensors, numbers, bytes, and how many tensors are of which type, as they are stored."""
    specs = stored.values()
    types = dict(sorted(Counter(spec.dtype for spec in specs).items()))
    return len(stored), sum(spec.numel for spec in specs), sum(spec.nbytes for spec in specs), types
