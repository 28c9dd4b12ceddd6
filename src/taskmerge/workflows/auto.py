"""`adapt --method auto`: tries named candidates within a budget and keeps the one that agrees best with the experts."""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from taskmerge.adaptation.folder import check_free, resumable
from taskmerge.checkpoint.adapted import is_adapted
from taskmerge.checkpoint.publish import publish_folder
from taskmerge.checkpoint.small_files import write_small
from taskmerge.errors import BadFile, BadOutput, Mismatch, UsageError
from taskmerge.evaluation.run import evaluate
from taskmerge.experts.arguments import Arguments
from taskmerge.numerics.device import named_device
from taskmerge.processes import group
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapt_report import AdaptReceipt
from taskmerge.workflows.adapt_request import AdaptRequest, adapt_requested
from taskmerge.workflows.adapt_seeds import check_same_experts, finished_report
from taskmerge.workflows.adapted import AdaptRunning, adapt_asked

BUDGET = 200
"""Iterations that all candidates share, if nobody says."""
Options = Mapping[str, Any]
CANDIDATES: Mapping[str, Options] = MappingProxyType(
    {
        "heads-iso-cts": {"method": "heads", "init": "iso_cts"},
        "heads-cart": {"method": "heads", "init": "cart", "rank": "0.16"},
        "cart-plus": {"method": "cart_plus"},
        "symerge": {"method": "symerge", "refit_heads": True},
        "symerge-mean": {"method": "symerge", "origin": "mean", "rank": "0.16", "refit_heads": True},
        "blocks": {"method": "blocks"},
    }
)
"""What is tried: methods, origins and layers that the embedded example's measurements (docs/adapt.md) speak for."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate: its agreement on held-out items and its seconds; its score where labels are there."""

    name: str
    agreement: float
    seconds: float
    score: float | None = None


def adapt_auto(
    suite: Suite, running: AdaptRunning, inputs: Arguments = (), *, budget: int = BUDGET, seed: int = 0,
    candidates: Mapping[str, Options] = CANDIDATES, **options: Any,
) -> AdaptReceipt:  # fmt: skip
    """Runs every candidate with a part of the unlabelled items held out, and keeps the best by agreement on those.

    `budget` are iterations, shared evenly by the candidates whose encoder learns; the others take their usual ones.
    Labels, where there are any, only say afterwards how good the choice was. With `resume` candidates that are finished
    stay as they are, the unfinished one is continued, the others start. Raises a TaskmergeError; candidates that cannot
    be run are left out with a note.
    """
    asked = candidate_requests(suite, inputs, budget, seed, candidates, options)
    place = auto_place(running)
    device = named_device(running.device, accelerate=True)
    with group(device, within=running.group) as together:
        running = running.within(together)
        together.by_first(lambda: check_auto(place, asked, running))
        try:
            receipts = _receipts(asked, place, running)
            if not receipts:
                raise UsageError("none of the candidates can be run here", where="--method", hint="name one to see why")
            best = max(receipts, key=lambda name: (_agreement(receipts[name]), -list(receipts).index(name)))

            def kept() -> AdaptReceipt:
                tried = _tried(receipts, suite, running, place, options)
                return _kept(receipts[best], best, tried, place)

            receipt = together.by_first(kept)
        except BaseException:
            if together.is_first and not auto_started(place, asked):
                _remove(place, asked)
            raise
        together.by_first(lambda: _remove(place, asked))
        return receipt


def candidate_requests(
    suite: Suite, inputs: Arguments, budget: int = BUDGET, seed: int = 0,
    candidates: Mapping[str, Options] = CANDIDATES, options: Options = MappingProxyType({}),
) -> dict[str, AdaptRequest]:  # fmt: skip
    """What is asked of every candidate. Raises UsageError for a budget or options that are none."""
    if budget < 1:
        raise UsageError(f"a budget of {budget}", where="--budget", hint="give iterations, such as 200")
    learning = [name for name, own in candidates.items() if own["method"] not in ("heads", "blocks")]
    share = {"iterations": max(1, budget // max(1, len(learning)))}
    same = {"stop": "agreement", "seed": seed}
    return {
        name: adapt_requested(suite, inputs, {**options, **own, **(share if name in learning else {}), **same})
        for name, own in candidates.items()
    }


# --- where candidates are tried --------------------------------------------------------------------------------


def auto_place(running: AdaptRunning) -> Path:
    """The folder that the best candidate ends up in."""
    return running.output or Path("adapted-auto")


def candidate_folder(place: Path, name: str) -> Path:
    """Where a candidate is tried: beside the place, so that paths in its recipe hold there too."""
    real = Path(os.path.realpath(place))
    return real.with_name(f".{real.name}.{name}")


def auto_started(place: Path, names: Iterable[str]) -> bool:
    """Whether some candidate is finished, or can be continued."""
    folders = [candidate_folder(place, name) for name in names]
    return any(is_adapted(folder) or resumable(folder) for folder in folders)


def check_auto(place: Path, names: Collection[str], running: AdaptRunning, *, keep: bool = False) -> None:
    """Raises BadOutput for what is in the way of the result, BadFile where there is nothing to resume.

    What an earlier command left that cannot, or is not to be, continued goes, unless it is to be kept.
    """
    check_free(place, overwrite=running.overwrite, resume=False)
    there = auto_started(place, names)
    if running.resume and not there:
        hint = "leave --resume out, or name the folder of that run with -o"
        raise BadFile("there is no unfinished run to resume", where=str(place), hint=hint)
    if there and not running.resume and not running.overwrite:
        hint = "--resume continues it, --overwrite starts again"
        raise BadOutput("was to be the result of an unfinished run", where=str(place), hint=hint)
    if not running.resume and not keep:
        _remove(place, names)


def _remove(place: Path, names: Iterable[str]) -> None:
    for name in names:
        shutil.rmtree(candidate_folder(place, name), ignore_errors=True)


def _receipts(asked: Mapping[str, AdaptRequest], place: Path, running: AdaptRunning) -> dict[str, AdaptReceipt]:
    """Every candidate that can be run, carried out, or as an earlier command has finished it."""
    receipts: dict[str, AdaptReceipt] = {}
    for name, request in asked.items():
        folder = candidate_folder(place, name)
        earlier = running.group.by_first(lambda folder=folder, request=request: _earlier(folder, request))  # type: ignore[misc]
        if earlier is not None:
            running.note(f"{name} is finished already")
            receipts[name] = earlier
            continue
        running.doing(f"trying {name}")
        resume = running.group.by_first(lambda folder=folder: resumable(folder))  # type: ignore[misc]
        own = replace(running, output=folder, scores=False, resume=resume, overwrite=True)
        try:
            receipts[name] = adapt_asked(request, own)
        except Mismatch as error:  # such as a method on matrices where there are none
            running.note(f"{name} is left out: {error.what}")
    check_same_experts([receipt.report for receipt in receipts.values()], place)
    return receipts


def _earlier(folder: Path, asked: AdaptRequest) -> AdaptReceipt | None:
    """A candidate that an earlier command finished; None if none did."""
    if not is_adapted(folder):
        return None
    report = finished_report(folder, asked)
    notes, warnings = tuple(report["notes"]), tuple(report["warnings"])
    return AdaptReceipt(str(folder), report, None, notes, warnings, report["timing"]["seconds"])


# --- the choice ------------------------------------------------------------------------------------------------


def _agreement(receipt: AdaptReceipt) -> float:
    return float(receipt.report["stopped"]["final"])


def _tried(
    receipts: Mapping[str, AdaptReceipt], suite: Suite, running: AdaptRunning, place: Path, options: Options
) -> list[Tried]:
    """Every candidate's agreement, and what labels say of it where there are any: afterwards, and of all alike."""
    tasks = options.get("tasks") or [task.name for task in suite.tasks]
    labelled = all(
        running.split in task.splits and task.splits[running.split].y is not None
        for task in suite.tasks if task.name in tasks
    )  # fmt: skip
    scores: dict[str, float] = {}
    if running.scores and labelled:
        running.doing("evaluating candidates")
        report = evaluate(
            {name: candidate_folder(place, name) for name in receipts}, suite=suite, split=running.split, tasks=tasks,
            device=running.device, cache=running.cache, map=options.get("map", ()),
        )  # fmt: skip
        scores = {average.encoder: average.average for average in report.averages if average.corruption is None}
    return [Tried(name, _agreement(receipt), receipt.seconds, scores.get(name)) for name, receipt in receipts.items()]


def _kept(receipt: AdaptReceipt, name: str, tried: Sequence[Tried], place: Path) -> AdaptReceipt:
    """The chosen candidate's folder under the name that was asked for, its report with what was tried."""
    folder = candidate_folder(place, name)
    chosen = {
        "candidate": name,
        "tried": [{"name": one.name, "agreement": one.agreement, "score": one.score} for one in tried],
        "regret": _regret(name, tried),
    }
    timing = {**receipt.report["timing"], "candidates": {one.name: one.seconds for one in tried}}
    report = {**receipt.report, "chosen": chosen, "timing": timing}
    write_small(folder / "report.json", json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    publish_folder(folder, Path(os.path.realpath(place)))
    notes = (*receipt.notes, f"agreement with the experts chooses {name}; no label was read")
    return replace(receipt, path=str(place), report=report, notes=notes)


def _regret(name: str, tried: Sequence[Tried]) -> float | None:
    """How far the choice is below the best by labels; None without labels."""
    scores = {one.name: one.score for one in tried if one.score is not None}
    return max(scores.values()) - scores[name] if name in scores else None
