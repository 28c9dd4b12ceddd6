"""`taskmerge.spectrum`: opens experts as a merge does, and measures their spectra and what lies between them."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from taskmerge.checkpoint.checkpoint import checked_plain
from taskmerge.checkpoint.held import open_place
from taskmerge.errors import Mismatch, UsageError, listed
from taskmerge.experts.adapters import AdapterSource
from taskmerge.experts.arguments import Arguments, State, existing, placed
from taskmerge.experts.compare import agree, specs_of
from taskmerge.experts.inputs import Inputs, resolve
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.sources import CheckpointSource, Source
from taskmerge.experts.tensors import Unit, units
from taskmerge.experts.wording import in_one_dialect
from taskmerge.merging.costs import Budget, budget
from taskmerge.merging.options import split_options
from taskmerge.numerics.memory import peak_memory, return_large_blocks
from taskmerge.numerics.rank import Rank
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Names, Size
from taskmerge.specs.merge import WIDENING, MergeSpec, OnMissing, Qkv
from taskmerge.spectra.matrices import Asked
from taskmerge.spectra.report import Entry, SpectrumReport
from taskmerge.spectra.scan import Job, Scan, jobs, scan
from taskmerge.spectra.summary import groups
from taskmerge.types import Space
from taskmerge.workflows.recommendation import recommendation

RANK = "0.08"
"""At which subspaces are compared, if nothing is said."""
RATIOS = ("0.01", "0.02", "0.04", "0.08", "0.16", "0.32", "0.64")
"""At which energies are given, if nothing is said."""
OWN = frozenset({"inputs", "merged", "rank", "ratios"})
Ranks = str | float | Rank | Sequence[str | float | Rank] | None


def spectrum(
    inputs: Arguments, *, base: str | Path | State | None = None, merged: str | Path | State | None = None,
    rank: str | float | Rank | None = None, ratios: Ranks = None, also: Names = None, qkv: Qkv | None = None,
    keep_base: bool | None = None, include: Globs = None, exclude: Globs = None, on_missing: OnMissing | None = None,
    strip_prefix: str | None = None, map: Globs = None, skip_input: Globs = None, allow_merged: bool | None = None,
    allow_pickle: bool | None = None, threads: int | None = None, max_memory: Size = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpectrumReport:  # fmt: skip
    """Measures the matrices of experts' task vectors, from the base and from their average, without any data.

    Inputs and options are those of `merge`, and mean the same; task heads are left aside. Subspaces of the leading
    `rank` components are compared (default: 0.08 of the full rank), energies given at `ratios`. `merged` is a
    checkpoint whose subspace the task vectors are held against. Reads every weight once; writes nothing. Raises
    `UsageError` for wrong options, `BadFile` for what cannot be read, `Mismatch` where inputs do not fit together or
    hold no matrix, `NotEnough` where `max_memory` is too little.
    """
    started = time.perf_counter()
    said = read.given(locals(), (*OWN, "started"))
    asked = Asked(_rank(rank if rank is not None else RANK, "--rank"), _ranks(ratios))
    spec, opening, running = split_options({**said, "heads": "keep"})
    with ExitStack() as stack:
        found = resolve(inputs, opening)
        stack.callback(found.close)
        other, notes = _merged(merged, found, spec, stack)
        needed = any(expert.kind != "weight" for expert in found.experts)
        agreed = agree(spec, found.base, found.experts, found.base is not None or needed)
        work = _work(found, asked, other)
        if not work.spaces:
            raise UsageError(
                "one expert without a base has nothing to be compared with", where="--base",
                hint="name the checkpoint that it was fine-tuned from, or give more experts",
            )  # fmt: skip
        chosen = _matrices(spec, agreed.names, found.experts)
        allowed = budget(running.threads, running.max_memory)
        todo, in_flight = _allowed(chosen, work, allowed)
        return_large_blocks()
        every = sorted(
            scan(work, todo, workers=allowed.workers, in_flight=in_flight, progress=running.progress),
            key=lambda one: (one.place.name, one.place.expert or 0, one.place.piece or ""),
        )
        found.check_unchanged()
        if other is not None:
            other.check_unchanged()
        notes = [*agreed.notes, *found.notes, *notes, *_notes(work, agreed.heads, chosen, other)]
    report = SpectrumReport(
        found.base.where if found.base else None, other.where if other else None,
        tuple(_entry(expert) for expert in found.experts), asked, spec.qkv, spec.also, tuple(every),
        tuple(groups(every)), tuple(notes), found.warnings, time.perf_counter() - started, peak_memory(),
    )  # fmt: skip
    return replace(report, recommendation=recommendation(report.to_dict(), found, said, heads=bool(agreed.heads)))


# --- options ---------------------------------------------------------------------------------------------------


def _rank(said: str | float | Rank, where: str) -> Rank:
    """A rank at which something is measured: a share or a count."""
    hint = "a share such as 0.08, or a count such as 8"
    try:
        rank = Rank.parse(said)
    except UsageError as error:
        raise UsageError(error.what, where=where, hint=hint) from None
    if rank.kind == "energy":
        raise UsageError(f"`{rank}` is another rank in every matrix", where=where, hint=hint)
    return rank


def _ranks(said: Ranks) -> tuple[Rank, ...]:
    """Ranks at which energies are given, each once."""
    if said is None:
        said = RATIOS
    several = said.split(",") if isinstance(said, str) else said if isinstance(said, Sequence) else [said]
    if not several:
        raise UsageError("an empty list holds no rank", where="--ratios", hint="such as 0.04,0.08,0.16")
    return tuple(dict.fromkeys(_rank(one, "--ratios") for one in several))


# --- inputs ----------------------------------------------------------------------------------------------------


def _merged(
    place: object, inputs: Inputs, spec: MergeSpec, stack: ExitStack
) -> tuple[CheckpointSource | None, list[str]]:
    """The merged checkpoint, in the words of the base (else of the first expert), and notes on that."""
    if place is None:
        return None, []
    checkpoint = stack.enter_context(checked_plain(open_place(existing(placed("merged", place)))))
    source = CheckpointSource("merged", checkpoint, prefix=spec.strip_prefix)
    first = inputs.base or next((one for one in inputs.experts if isinstance(one, CheckpointSource)), None)
    notes = in_one_dialect([first, source]) if first is not None else []
    return source, notes


def _work(inputs: Inputs, asked: Asked, merged: Source | None) -> Scan:
    """What is read, and about which origins it is measured."""
    base, experts = inputs.base, inputs.experts
    wide = any(spec.dtype == "F64" for source in inputs.sources for spec in source.specs.values())
    dtype = torch.float64 if wide else torch.float32
    space: Space = "weight" if base is None else "delta"
    rows = Rows(base, experts, space, even(experts), dtype)
    other = Rows(base, [merged], space, even([merged]), dtype, stop=rows.stop) if merged is not None else None
    centred = any(expert.kind == "centred" for expert in experts)
    about_base: tuple[Space, ...] = ("delta",) if base is not None and not centred else ()
    about_mean: tuple[Space, ...] = ("centred",) if centred or len(experts) > 1 else ()
    return Scan(rows, asked, (*about_base, *about_mean), other)


def _matrices(spec: MergeSpec, names: Sequence[str], experts: Sequence[Source]) -> list[Unit]:
    """The tensors whose matrices are measured: those that spectral methods truncate."""
    every = units(specs_of(names, experts), spec.qkv)
    chosen = [unit for unit in every if unit.truncated(spec.also)]
    if not chosen:
        there = sorted({unit.kind for unit in every if unit.truncated(WIDENING)})
        hint = f"widen it to what these models have: `--also {','.join(there)}`" if there else "check --include"
        raise Mismatch("there is no matrix to measure: no tensor is of the class `linear`", hint=hint)
    return chosen


def _allowed(chosen: Sequence[Unit], work: Scan, allowed: Budget) -> tuple[list[Job], int]:
    """The jobs, and the bytes that they may hold at once; `NotEnough` where one is too large for the limit."""
    todo = jobs(
        chosen, len(work.experts), work.asked.rank.resolve, work.rows.dtype.itemsize, merged=work.merged is not None
    )
    heaviest = max(todo, key=lambda job: job.memory)
    together = sum(sorted((job.memory for job in todo), reverse=True)[: allowed.workers])
    if allowed.limit is None:
        return todo, together
    allowed.check("this analysis", heaviest.unit.name, heaviest.memory)
    return todo, min(together, allowed.limit - allowed.resident)


def _entry(source: Source) -> Entry:
    kind = "adapter" if isinstance(source, AdapterSource) else str(source.record.get("kind", "checkpoint"))
    return Entry(source.task, source.where, kind)


def _notes(work: Scan, heads: Sequence[str], chosen: Sequence[Unit], merged: CheckpointSource | None) -> list[str]:
    """What a careful reader would want to know of the numbers."""
    notes, experts = [], work.experts
    if heads:
        notes.append(f"{len(heads)} tensors of task heads are left aside: {listed(heads)}")
    if work.rows.base is None:
        notes.append("without a base only differences from the experts' average are measured (`--base FILE`)")
    elif work.centred:
        notes.append("the task vectors are differences from an average: those from the base are not known")
    if len(experts) == 1:
        notes.append("one expert: nothing lies between tasks, and there is no average to differ from")
    elif len(experts) == 2:
        notes.append(
            "two experts: their differences from the average are each other's negative, so nothing lies between"
        )
    short = [expert.task for expert in experts if any(unit.name in expert.cut for unit in chosen)]
    if short:
        notes.append(f"the factors of {', '.join(short)} hold some components only: their spectra end there")
    if merged is not None:
        absent = [unit.name for unit in chosen if any(part.name not in merged.specs for part in unit.parts)]
        if absent:
            notes.append(f"{merged.where} lacks {len(absent)} matrices: {listed(absent)}")
    return notes
