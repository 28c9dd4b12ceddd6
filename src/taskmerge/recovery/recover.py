"""`recover`: which experts, with which coefficients, make a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from taskmerge.checkpoint.dtypes import is_float
from taskmerge.checkpoint.held import Place
from taskmerge.errors import Mismatch, UsageError
from taskmerge.experts.arguments import Arguments, State, checked, named, placed
from taskmerge.experts.classes import CLASSES
from taskmerge.experts.compare import agree
from taskmerge.experts.earlier import same_place
from taskmerge.experts.inputs import InputOptions, Inputs, put, resolve
from taskmerge.experts.origin import named_base
from taskmerge.merging.costs import budget
from taskmerge.merging.options import READERS, split_options
from taskmerge.numerics.memory import return_large_blocks
from taskmerge.recovery.claims import claim_of
from taskmerge.recovery.judge import TensorFit, linear, of_rounding, pointers, simplest, verdict
from taskmerge.recovery.measure import Candidates, TensorMoments, by_class, grain_of, measure
from taskmerge.recovery.moments import Moments
from taskmerge.recovery.report import ClassFit, Recovery
from taskmerge.recovery.solve import FORMS, Fit, Form, fit
from taskmerge.specs.keywords import Globs, Size, given, read_keywords
from taskmerge.specs.merge import FINISH, MergeSpec, OnMissing
from taskmerge.types import TensorClass

MERGED = "the merged checkpoint"
RUNNING = ("threads", "max_memory", "progress")
"""Keywords that are none of how inputs are understood."""
SWALLOWED, MANY = 0.95, 10_000
"""Times rounding below which some of it was no accident, and how many numbers it takes to say so."""


def recover(
    merged: str | Path | State, experts: Arguments, *,
    base: str | Path | State | None = None, include: Globs = None, exclude: Globs = None,
    on_missing: OnMissing | None = None, heads: Literal["refuse", "keep"] | None = None,
    strip_prefix: str | None = None, map: Globs = None, skip_input: Globs = None, allow_pickle: bool | None = None,
    threads: int | None = None, max_memory: Size = None, progress: Callable[[int, int], None] | None = None,
) -> Recovery:  # fmt: skip
    """Which of the candidates `experts`, with which coefficients, make `merged`, and what no coefficients explain.

    Least squares over all entries, from one reading of every input: θ ≈ θ₀ + Σ_t λ_t (θ_t - θ₀) with a base, which has
    the share 1 - Σ λ_t, or Σ_t w_t θ_t with Σ w_t = 1 without one; for the whole model, by class of tensors and by
    tensor. What is left is judged by what rounding to the type of `merged` leaves. Inputs and options are those of
    `merge`; earlier merges are candidates like any expert. Raises `UsageError` for wrong options, `BadFile` for what
    cannot be read or is not finite, `Mismatch` for tensors that do not fit, `NotEnough` where `max_memory` is too
    little.
    """
    asked = read_keywords(READERS, given(locals(), ("merged", "experts")))
    workers, limit, heard = (asked.pop(name, None) for name in RUNNING)
    spec, opening, _ = split_options({"method": FINISH, **asked})
    with ExitStack() as stack:
        inputs = _opened(merged, experts, opening)
        stack.callback(inputs.close)
        of = _candidates(inputs)
        names, left_out, notes = _shared(of, spec)
        return_large_blocks()
        found = measure(of, names, budget(workers, limit), heard)
        inputs.check_unchanged()
        return _recovery(of, found, left_out, (*inputs.notes, *notes), inputs.warnings)


# --- what is compared ------------------------------------------------------------------------------------------


def _opened(merged: str | Path | State, experts: Arguments, opening: InputOptions) -> Inputs:
    """All inputs, the merged checkpoint among them as one more expert: so it is read in the words of the others."""
    whole = placed(MERGED, merged)
    candidates = named(checked(experts))
    base, rule = opening.base, opening.base_rule
    if base is None:
        base, rule = named_base(candidates)
    places: dict[str, Place] = {}
    told: list[str] = []
    for task, place in candidates:
        if same_place(place, whole):
            told.append(f"{place} is the merged checkpoint, and no candidate")
        elif base is not None and same_place(place, base):
            told.append(f"{place} is the base ({rule}), which has the rest of every sum")
        else:
            put(places, task, place)
    if not places:
        raise UsageError("there is no candidate", hint="give the experts that may have made it as arguments")
    name = MERGED
    while name in places:
        name += "'"
    options = replace(opening, base=base, base_rule=rule, keep_base=True, allow_merged=True, told=tuple(told))
    return resolve({**places, name: whole}, options)


def _candidates(inputs: Inputs) -> Candidates:
    """The merged checkpoint apart from its candidates again."""
    merged = [expert for expert in inputs.experts if expert.task.startswith(MERGED)][-1:]
    if not merged:
        raise UsageError("the merged checkpoint is left out", where="--skip-input", hint="leave out candidates alone")
    return Candidates(merged[0], tuple(one for one in inputs.experts if one is not merged[0]), inputs.base)


def _shared(of: Candidates, spec: MergeSpec) -> tuple[list[str], int, list[str]]:
    """The tensors to compare, how many of the merged checkpoint are not, and notes. `Mismatch` where they don't fit."""
    based = of.base is not None
    agreed, held = agree(spec, of.base, of.experts, based), of.merged.specs
    known = {name: spec for one in reversed(of.experts) for name, spec in one.specs.items()}
    if any(name not in held or held[name].shape != known[name].shape for name in agreed.names):
        agreed = agree(spec, of.base, (*of.experts, of.merged), based)  # which says what is wrong, or leaves it out
    floats = [name for name, one in held.items() if is_float(one.dtype) and one.numel]
    names = sorted(set(agreed.names).intersection(floats))
    if not names:
        raise Mismatch(
            "it has no tensor of numbers in common with all candidates", where=of.merged.where,
            hint="`taskmerge inspect FILE` lists names and shapes; check --include and --exclude",
        )  # fmt: skip
    notes = [note for note in agreed.notes if "--on-missing base copies" not in note]
    if left := len(floats) - len(names):
        notes.append(f"left out {left} tensors of {of.merged.where} that the candidates lack, or were told to")
    return names, left, notes


# --- what comes of it ------------------------------------------------------------------------------------------


def _recovery(
    of: Candidates, found: Sequence[TensorMoments], left_out: int, notes: Sequence[str], warnings: Sequence[str]
) -> Recovery:
    """The fits, and what they say together."""
    based = of.base is not None
    whole = sum((one.moments for one in found), Moments.none(len(of.experts)))
    code, said = _rounded_to(of, found, whole)

    def fitted(moments: Moments, form: Form = "least squares") -> Fit:
        return fit(moments, form, based=based, rounding=moments.narrow.get(code) if said else None)

    fits = {form: fitted(whole, form) for form in FORMS}
    kinds = {kind: fitted(moments) for kind, moments in by_class(found).items()}
    tensors = tuple(TensorFit(one.name, one.kind, one.moments.numel, fitted(one.moments)) for one in found)
    foreign = tuple(
        one.name for one, own in zip(found, tensors, strict=True)
        if not one.moments.between.any() and not of_rounding(own.fit)
    )  # fmt: skip
    still = whole.moved[1] / whole.moved[0] if based and whole.moved[0] else None
    judged = verdict(fits, kinds, tensors, changed=whole.change > 0)
    places = {one.task: one.where for one in of.experts}
    least = fits["least squares"]
    return Recovery(
        of.merged.where, of.base.where if of.base else None, places, judged,
        tuple(pointers(tensors, still=still, foreign=foreign, based=based)) if judged == "not linear" else (),
        simplest(fits), fits, _classes(kinds, tensors), tensors, code, still, foreign, left_out,
        claim_of(
            of.merged.record, list(places), least, linear=None if judged == "unclear" else linear(least), based=based
        ),
        (*notes, *([said] if said else [])), (*warnings, *_doubts(of, least, whole.numel, code)),
    )  # fmt: skip


def _doubts(of: Candidates, least: Fit, numbers: int, code: str) -> list[str]:
    """Warnings where numbers are less sure than they look."""
    found = []
    narrow = code not in ("F32", "F64")  # of these the sums' own accuracy counts as rounding too
    if narrow and least.ratio is not None and least.ratio < SWALLOWED and least.residual and numbers >= MANY:
        found.append(
            f"less is left than rounding leaves ({least.ratio:.2f} of it): part of the changes was too small for the "
            "type and is lost, so that coefficients may be off by a few percent"
        )
    if of.merged.kind != "weight":
        found.append(f"{of.merged.where} holds differences: what rounding leaves of them is not known, only of weights")
    return found


def _rounded_to(of: Candidates, found: Sequence[TensorMoments], whole: Moments) -> tuple[str, str]:
    """The type that the merged checkpoint is rounded to, and a note where that is not the one it is stored in."""
    stored = {grain_of(of.merged.specs[one.name]).code for one in found}
    kind = next(iter(stored)) if len(stored) == 1 else "mixed"
    if whole.narrow:
        code = next(iter(whole.narrow))
        return code, f"all numbers of {of.merged.where}, stored as {kind}, are numbers of {code}: judged by that"
    return kind, ""


def _classes(kinds: Mapping[TensorClass, Fit], tensors: Sequence[TensorFit]) -> dict[TensorClass, ClassFit]:
    """The fits by class, with counts of their tensors."""
    return {
        kind: ClassFit(
            len(own), sum(one.numel for one in own), sum(of_rounding(one.fit) for one in own), kinds[kind]
        )
        for kind in CLASSES if kind in kinds and (own := [one for one in tensors if one.kind == kind])
    }  # fmt: skip
