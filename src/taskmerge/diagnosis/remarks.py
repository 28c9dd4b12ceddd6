"""What the numbers say of the experts, in words: whose fine-tunings they are, which are equal or of something else."""

from collections.abc import Iterator, Mapping

from taskmerge.diagnosis.findings import Finding
from taskmerge.diagnosis.kinship import Closeness, Kinship
from taskmerge.errors import BadFile, listed
from taskmerge.numerics.likeness import ALIKE, UNLIKE, among, in_step

ROUNDED = 0.25
"""Share of a task vector's square from which on its rounding is worth a warning."""
SHOWN = 5


def remarks(kinship: Kinship, base: str, where: Mapping[str, str]) -> list[Finding]:
    """What is worth a word; `base` and `where` say where the inputs lie."""
    measured = kinship.measured
    found = [_fault(where[task], tensors) for task, tensors in measured.faults.items()]
    found += [_fault(base, measured.base_faults)] if measured.base_faults else []
    found += [_warning(f"{pair.a} and {pair.b} are equal, entry for entry") for pair in kinship.pairs if pair.equal]
    if not measured.based:
        return [*found, *_apart(kinship)]
    grouped = {task for group in kinship.strangers for task in group}
    for place, (task, one) in enumerate(kinship.closeness.items()):
        if task not in kinship.bound:
            found += _beside_base(task, one, alone=measured.alone[place], grouped=task in grouped)
    return [*found, *_of_something_else(kinship, base), *_one_step(kinship), *_rounded(kinship)]


def _fault(where: str, tensors: Mapping[str, int]) -> Finding:
    """Entries that are not finite, which a merge refuses."""
    count = sum(tensors.values())
    what = f"{count:,} entr{'y is' if count == 1 else 'ies are'} NaN or infinite, in {listed(tensors, SHOWN)}"
    hint = "this checkpoint is damaged or its training diverged; leave it out"
    return Finding("refusal", "weights", what, where, hint, BadFile.exit_code)


def _warning(what: str, hint: str | None = None) -> Finding:
    return Finding("warning", "weights", what, hint=hint)


# --- one expert beside the base --------------------------------------------------------------------------------


def _beside_base(task: str, one: Closeness, *, alone: bool, grouped: bool) -> Iterator[Finding]:
    """What one expert is to the base, where that is not a fine-tuning; `grouped`: it is said of several at once."""
    if one.kin == "equal":
        rest = " but for rounding to its own type" if one.relative_norm else ""
        rest += " in all that both have" if alone else ""
        yield _warning(f"{task} equals the base{rest}: it changes nothing")
    elif one.kin == "unknown":
        what = f"{task}: no matrix of it can be compared with the base's, which would tell whether it is its kin"
        yield Finding("note", "weights", what)
    elif one.kin == "unrelated" and not grouped:
        yield _stranger(task, one)
    elif one.kin == "far" and not grouped:
        yield _far(task, one)
    if one.unlike and one.kin in ("fine-tuning", "far"):
        what = (
            f"{task}: {len(one.unlike)} of its {one.matrices} matrices are unlike the base's (cosine below {UNLIKE:g})"
        )
        yield _warning(f"{what}: {listed(one.unlike, SHOWN)}: trained anew, or emptied")


def _stranger(task: str, one: Closeness) -> Finding:
    """An expert that is probably of something else."""
    what = f"{task} is probably not a fine-tuning of this base: "
    if not one.changed:
        return _warning(what + "they have no tensor of one name and shape", "leave it out, or name another base")
    median = f"the median cosine of its {one.matrices} matrices with the base's is {_shown(one.median)}"
    hint = "another start, or the same neurons in another order: leave it out, or name another base"
    return _warning(f"{what}{median} (below {UNLIKE:g})", hint)


def _far(task: str, one: Closeness) -> Finding:
    """An expert that has moved further than fine-tuning does."""
    if (one.median or 0) >= ALIKE and not in_step(one.scale):
        what = f"{task}'s matrices are {_shown(one.scale)} times as long as the base's"
        return _warning(f"{what}: multiplied, or codes without their scales")
    what = f"{task} is far from the base: median cosine {_shown(one.median)} (fine-tuning leaves {ALIKE:g} and more)"
    return _warning(f"{what}: long training, pruning, noise, or another base")


# --- several experts -------------------------------------------------------------------------------------------


def _of_something_else(kinship: Kinship, base: str) -> Iterator[Finding]:
    """Experts that are close to each other and not to the base."""
    for group in kinship.strangers:
        inside = [pair.median for pair in kinship.pairs if {pair.a, pair.b} <= {*group} and pair.median is not None]
        outside = [one for task in group if (one := kinship.closeness[task].median) is not None]
        beside = f"median cosines of at most {_shown(max(outside))}" if outside else "nothing in common"
        what = f"{listed(group, plain=True)} are close to each other (median cosines from {_shown(min(inside))} on), "
        what += f"not to the base {base} ({beside}): they look like fine-tunings of something else"
        yield _warning(what, "name what they came from as --base; methods about the experts' average need none")


def _one_step(kinship: Kinship) -> Iterator[Finding]:
    """Experts with nearly the same task vector."""
    chosen = [
        place
        for place in kinship.of_kin("fine-tuning")
        if (kinship.closeness[kinship.tasks[place]].rounding or 0) < ROUNDED
    ]
    for group in among(chosen, (kinship.cosines[1:, 1:] >= ALIKE) & ~kinship.measured.same):
        names = listed((kinship.tasks[place] for place in group), plain=True)
        what = f"the task vectors of {names} are nearly one (cosines from {ALIKE:g} on)"
        what += ": fine-tunings of a model between the base and them, or checkpoints of one training"
        yield _warning(what, "if there is such a model, it is the better --base")


def _rounded(kinship: Kinship) -> Iterator[Finding]:
    """Experts whose task vector is in good part the rounding of a base in a finer type."""
    shares = {task: one.rounding for task, one in kinship.closeness.items() if one.rounding is not None}
    odd = ", ".join(
        f"{task} {share:.0%}"
        for task, share in shares.items()
        if share >= ROUNDED and kinship.closeness[task].kin != "equal"
    )
    if odd:
        what = f"the base is held in a finer type than experts, and so much of ‖τ‖² is its rounding to theirs: {odd}"
        yield _warning(what, "take the base in the experts' type")


def _apart(kinship: Kinship) -> Iterator[Finding]:
    """Without a base: experts that are no kin of others."""
    if len(kinship.families) > 1:
        sets = " | ".join(listed(family, plain=True) for family in kinship.families)
        what = f"these are of different starts (median cosines of matrices below {UNLIKE:g}, or no tensor in common)"
        yield _warning(f"{what}: {sets}", "merge those of one start")


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{round(value, 2) + 0:.2f}"
