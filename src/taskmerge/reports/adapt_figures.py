"""The pictures of an adaptation: what the folder that `adapt` writes holds, read once, and every plot of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmerge.adaptation.trace import trace_records
from taskmerge.checkpoint.adapted import AdaptedFolder, Part, read_adapted
from taskmerge.checkpoint.learned import read_coefficients, read_learned
from taskmerge.evaluation.intervals import Interval, wilson
from taskmerge.evaluation.metrics import METRICS
from taskmerge.methods.composed import Learned
from taskmerge.reports.candidate_figures import candidate_figures
from taskmerge.reports.coefficient_figures import coefficient_figures
from taskmerge.reports.figures import Figure
from taskmerge.reports.mask_figures import mask_figures
from taskmerge.reports.trace_bins import Trace, binned
from taskmerge.reports.trace_figures import Bounds, trace_figures

ROUNDING = 1e-6
LACKING: Mapping[Part, str] = {
    "coefficients": "no coefficients: nothing was learnt of the merged weights",
    "masks": "no masks: the method chooses no components",
    "trace": "no curve: nothing was learnt step by step",
}
"""What the lack of a part means."""


@dataclass(frozen=True, slots=True)
class AdaptView:
    """What a folder holds for pictures; `lacking` says of each part that it lacks why there is no picture of it."""

    learned: Learned | None = None
    trace: Trace | None = None
    lacking: tuple[str, ...] = ()


def read_view(folder: Path, document: Mapping[str, Any]) -> AdaptView:
    """What is in the folder of an adaptation whose report.json is `document`.

    Raises BadFile for a folder of another version, or whose parts are damaged or not there.
    """
    adapted = read_adapted(folder)
    trace_file = adapted.place("trace")
    trace = None
    if trace_file is not None:
        tasks, updates = document["tasks"], int(document["protocol"]["updates"])
        trace = binned(trace_records(trace_file), updates, len(tasks), str(trace_file))
    learned = _learned(adapted)
    adapted.check_unchanged()
    there = [part for part in adapted.manifest.parts if part != "trace" or (trace is not None and trace.updates)]
    return AdaptView(learned, trace, tuple(words for part, words in LACKING.items() if part not in there))


def _learned(adapted: AdaptedFolder) -> Learned | None:
    """Coefficients and masks, as far as the manifest lists them."""
    file = adapted.place("coefficients")
    if file is None:
        return None
    return read_learned(adapted.path) if adapted.place("masks") else read_coefficients(file)


def adapt_figures(document: Mapping[str, Any], view: AdaptView) -> list[Figure]:
    """Every plot that a run has something for: what was tried and how it went first, then what was learnt."""
    figures = candidate_figures(document)
    if view.trace is not None:
        stopped = document.get("stopped")
        figures += trace_figures(
            view.trace, chosen=None if stopped is None else int(stopped["update"]),
            held_out=_held_out_bounds(document), watched=_watched_bounds(document, view.trace.split),
            shares=_shares(document),
        )  # fmt: skip
    if view.learned is not None:
        figures += mask_figures(view.learned) + coefficient_figures(view.learned)
    return figures


def _held_out_bounds(document: Mapping[str, Any]) -> Bounds:
    """Wilson's interval of an agreement that is a share of the task's held-out items, of classes that is."""
    counts = {task["name"]: int(task["held_out"]) for task in document["tasks"]}
    return lambda task, value: _share_bounds(value, counts.get(task, 0))


def _watched_bounds(document: Mapping[str, Any], split: str | None) -> Bounds:
    """Wilson's interval of an accuracy, where the end was scored on the split that was watched."""
    scores = document.get("scores")
    if scores is None or scores["split"] != split:
        return lambda task, value: None
    counts = {row["task"]: int(row["n"]) for row in scores["rows"] if METRICS[row["metric"]].proportion}
    return lambda task, value: _share_bounds(value, counts.get(task, 0))


def _shares(document: Mapping[str, Any]) -> bool:
    """Whether all scores are told in percent, as far as is known."""
    scores = document.get("scores")
    return scores is not None and all(METRICS[row["metric"]].percent for row in scores["rows"])


def _share_bounds(value: float, n: int) -> Interval | None:
    """The interval of a share of n items; None for what is no such share."""
    hits = round(value * n)
    if not n or not 0 <= hits <= n or abs(value * n - hits) > ROUNDING * n:
        return None
    return wilson(hits, n)
