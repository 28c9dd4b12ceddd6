"""`adapt --method auto`: tries named candidates within a budget and keeps the one that agrees best with the experts."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from taskmerge.adaptation.folder import open_folder
from taskmerge.checkpoint.publish import publish_folder
from taskmerge.checkpoint.small_files import write_small
from taskmerge.checkpoint.staging import staging_folder
from taskmerge.errors import Mismatch, UsageError
from taskmerge.evaluation.run import evaluate
from taskmerge.merging.options import Arguments
from taskmerge.numerics.device import named_device
from taskmerge.processes import group
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapt_report import AdaptReceipt
from taskmerge.workflows.adapt_request import adapt_requested
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
    Labels, where there are any, only say afterwards how good the choice was. Raises a TaskmergeError; candidates that
    cannot be run are left out with a note.
    """
    if budget < 1:
        raise UsageError(f"a budget of {budget}", where="--budget", hint="give iterations, such as 200")
    place = running.output or Path("adapted-auto")
    learning = [name for name, own in candidates.items() if own["method"] not in ("heads", "blocks")]
    share = max(1, budget // max(1, len(learning)))
    device = named_device(running.device, accelerate=True)
    with group(device, within=running.group) as together, ExitStack() as stack:
        running = running.within(together)
        work = together.by_first(lambda: _work_folder(place, running, stack))
        receipts: dict[str, AdaptReceipt] = {}
        for name, own in candidates.items():
            running.doing(f"trying {name}")
            more = {"iterations": share} if name in learning else {}
            try:
                asked = adapt_requested(suite, inputs, {**options, **own, **more, "stop": "agreement", "seed": seed})
                receipts[name] = adapt_asked(asked, replace(running, output=work / name, scores=False, resume=False))
            except Mismatch as error:  # such as a method on matrices where there are none
                running.note(f"{name} is left out: {error.what}")
        if not receipts:
            raise UsageError("none of the candidates can be run here", where="--method", hint="name one to see why")
        best = max(receipts, key=lambda name: (_agreement(receipts[name]), -list(receipts).index(name)))

        def kept() -> AdaptReceipt:
            tried = _tried(receipts, suite, running, work, options)
            return _kept(receipts[best], best, tried, work / best, place, running)

        return together.by_first(kept)


def _work_folder(place: Path, running: AdaptRunning, stack: ExitStack) -> Path:
    """Where the candidates are tried, once it is clear that the result may take its place."""
    shutil.rmtree(open_folder(place, overwrite=running.overwrite, resume=False).path)
    return stack.enter_context(staging_folder(place))


def _agreement(receipt: AdaptReceipt) -> float:
    return float(receipt.report["stopped"]["final"])


def _tried(
    receipts: Mapping[str, AdaptReceipt], suite: Suite, running: AdaptRunning, work: Path, options: Options
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
            {name: work / name for name in receipts}, suite=suite, split=running.split, tasks=tasks,
            device=running.device, cache=running.cache,
        )  # fmt: skip
        scores = {average.encoder: average.average for average in report.averages if average.corruption is None}
    return [Tried(name, _agreement(receipt), receipt.seconds, scores.get(name)) for name, receipt in receipts.items()]


def _kept(
    receipt: AdaptReceipt, name: str, tried: Sequence[Tried], folder: Path, place: Path, running: AdaptRunning
) -> AdaptReceipt:
    """The chosen candidate's folder under the name that was asked for, its report with what was tried."""
    chosen = {
        "candidate": name,
        "tried": [{"name": one.name, "agreement": one.agreement, "score": one.score} for one in tried],
        "regret": _regret(name, tried),
    }
    timing = {**receipt.report["timing"], "candidates": {one.name: one.seconds for one in tried}}
    report = {**receipt.report, "chosen": chosen, "timing": timing}
    write_small(folder / "report.json", json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    publish_folder(folder, place)
    notes = (*receipt.notes, f"agreement with the experts chooses {name}; no label was read")
    return replace(receipt, path=str(place), report=report, notes=notes)


def _regret(name: str, tried: Sequence[Tried]) -> float | None:
    """How far the choice is below the best by labels; None without labels."""
    scores = {one.name: one.score for one in tried if one.score is not None}
    return max(scores.values()) - scores[name] if name in scores else None
