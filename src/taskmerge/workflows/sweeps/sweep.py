"""Carries out kinds of sweeps over one suite, and says what they found as one document."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from taskmerge.evaluation.metrics import METRICS
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.coefficient import CoefficientSweep
from taskmerge.workflows.sweeps.components import ComponentsSweep
from taskmerge.workflows.sweeps.landscape import LandscapeSweep
from taskmerge.workflows.sweeps.opening import Opened, open_sweep
from taskmerge.workflows.sweeps.pairs import PairsSweep
from taskmerge.workflows.sweeps.points import FOLDER, Points, digest_of_values
from taskmerge.workflows.sweeps.rank import RankSweep
from taskmerge.workflows.sweeps.references import References
from taskmerge.workflows.sweeps.request import SCORED, Kind, SweepRequest
from taskmerge.workflows.sweeps.routing import RoutingSweep
from taskmerge.workflows.sweeps.running import Sweep, carry_out, missing
from taskmerge.workflows.sweeps.subsets import SubsetsSweep

SWEEPS: Mapping[Kind, Callable[[Opened], Sweep]] = {
    "rank": RankSweep, "coefficient": CoefficientSweep, "routing": RoutingSweep, "subsets": SubsetsSweep,
    "components": ComponentsSweep, "landscape": LandscapeSweep, "pairs": PairsSweep,
}  # fmt: skip


@dataclass(frozen=True)
class SweepReport:
    """What sweeps found: `document` is the part `sweeps` of a report, the same for equal runs; `seconds` by kind."""

    document: Mapping[str, Any]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def sweep_asked(asked: SweepRequest) -> SweepReport:
    """Carries out what is asked; points that were found before, by the same code on the same inputs, are taken over.

    Raises a TaskmergeError: UsageError for grids out of range, too few tasks, labels that are not there; BadOutput
    where points cannot be stored; and whatever reading experts, suites and data raises.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        asked.note(text)

    with ExitStack() as stack:
        opened = open_sweep(replace(asked, note=note), stack)
        sweeps: dict[str, Sweep] = {kind: SWEEPS[kind](opened) for kind in asked.kinds}
        references = References(opened) if SCORED & {*asked.kinds} else None
        every = {**({"references": references} if references else {}), **sweeps}
        found = {kind: _points(opened, one) for kind, one in every.items()}
        left = sum(planned.items for kind, one in every.items() for planned in missing(one, found[kind]))
        _watch(opened, left)
        seconds = {}
        for kind, one in every.items():
            started = time.perf_counter()
            carry_out(one, found[kind], asked.folder)
            seconds[kind] = time.perf_counter() - started
        _check_unchanged(opened)
        experts = references.experts(found["references"]) if references else {}
        means = Means(opened.tasks, experts)
        document = {**_about(opened), **{kind: one.document(found[kind], means) for kind, one in every.items()}}
    return SweepReport(document, seconds, tuple(dict.fromkeys(notes)))


def _points(opened: Opened, one: Sweep) -> Points:
    """The store of one kind, under the digest of all that its results depend on."""
    key = digest_of_values({"kind": one.kind, **opened.identity_of(one.kind), **one.options})
    return Points(opened.asked.folder / FOLDER, one.kind, key)


def _watch(opened: Opened, left: int) -> None:
    """Has whoever asked hear of items as they are encoded; all judges share one encoder."""
    judge = opened.scores or opened.losses
    if judge is None:
        return
    before, told = judge.forward.done, opened.asked.progress

    def progress(done: int, total: int | None, label: str) -> None:
        told(done - before, max(left, done - before))

    judge.forward.progress = progress
    progress(before, None, "")


def _check_unchanged(opened: Opened) -> None:
    """Raises BadFile where an input was rewritten meanwhile."""
    encoder = opened.encoder
    for source in (*encoder.experts, *([encoder.base] if encoder.base is not None else [])):
        source.check_unchanged()


def _about(opened: Opened) -> dict[str, Any]:
    """What the results are of."""
    asked, identity = opened.asked, opened.identity
    judge = opened.scores or opened.losses
    tasks = [
        {
            "name": name, "kind": task.kind, "metric": task.metric,
            "lower_is_better": METRICS[task.metric].lower_is_better, "percent": METRICS[task.metric].percent,
            "n": 0 if judge is None else len(judge.tasks[name].items),
            "fingerprint": "" if judge is None else judge.tasks[name].fingerprint,
            "loss_labels": opened.losses.tasks[name].source if opened.losses else None,
        }
        for name, task in opened.tasks.items()
    ]  # fmt: skip
    return {
        "suite": asked.suite.name, "split": asked.split, "limit": asked.limit, "seed": asked.seed,
        "kinds": list(asked.kinds), "experts": identity["experts"], "base": identity["base"], "tasks": tasks,
    }  # fmt: skip
