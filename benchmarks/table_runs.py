"""One run of the measured tables: a row made from nothing, scored, and what it cost; a failure is a result too."""

import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from table_results import Asked, Failure, Result, versions, without_paths
from taskmerge.adaptation.running import Heard
from taskmerge.adaptation.trace import StepRecord, read_trace
from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import Missed, TaskmergeError
from taskmerge.evaluation.run import evaluate
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.request import requested
from taskmerge.models.backbones import build
from taskmerge.numerics.device import cores, named_device
from taskmerge.numerics.memory import peak_memory
from taskmerge.specs.suite import Suite
from taskmerge.workflows.adapt_request import adapt_requested
from taskmerge.workflows.adapted import AdaptRunning, adapt_asked
from taskmerge.workflows.auto import BUDGET, adapt_auto

Plain = dict[str, Any]
LIBRARIES = ["taskmerge.workflows.auto", "open_clip", "transformers"]


@dataclass(frozen=True)
class Cost:
    """Wall seconds of the work alone, and the peak resident bytes of the process that did it."""

    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class Made:
    """What a run made: the checkpoint, as `evaluate` takes it, what it cost, and what was chosen on the way."""

    checkpoint: str | Path
    cost: Cost | None = None
    updates: int | None = None
    warnings: Sequence[str] = ()
    agreement: float | None = None
    choice: Plain | None = None


def apart(asked: Asked, work: Path) -> Result:
    """`measured` in a process of its own: the peak of its memory is its own, and what kills it ends nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)  # imported once for all runs
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measured, asked, work).result()
        except BrokenProcessPool:
            message = "the process was ended from outside (too little memory?)"
            return _result(asked, error=Failure(exit_code=5, kind="Killed", message=message))


def measured(asked: Asked, work: Path) -> Result:
    """Makes a run in a folder inside `work` that is gone afterwards, and scores what it wrote.

    Whatever goes wrong is the result's `error`; only an interrupt gets through.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work, prefix=".run-") as folder:
            made = MAKERS[asked.row.kind](asked, Path(folder))
            scores = _scores(made.checkpoint, asked.suite)
    except TaskmergeError as error:
        return _failed(asked, error.exit_code, error, error.message.partition("\n")[0])
    except Exception as error:  # a defect that one row meets ends no table
        return _failed(asked, 1, error, str(error))
    return _result(
        asked, scores=scores, seconds=made.cost and made.cost.seconds,
        peak_memory=made.cost and made.cost.peak_memory, updates=made.updates, agreement=made.agreement,
        choice=made.choice, warnings=[without_paths(text) for text in made.warnings],
    )  # fmt: skip


def _failed(asked: Asked, code: int, error: Exception, message: str) -> Result:
    return _result(asked, error=Failure(exit_code=code, kind=type(error).__name__, message=without_paths(message)))


def _result(asked: Asked, **found: Any) -> Result:
    """A result with what is known of every run."""
    device = named_device("auto", accelerate=True).type
    machine = {"cores": cores(), "device": device, "system": f"{platform.system()} {platform.machine()}"}
    row = asked.row
    return Result(
        row=row.name, command=row.command, seed=asked.seed, split=asked.split if row.learns else None,
        allowed=asked.seconds, versions=versions(), machine=machine, **found,
    )  # fmt: skip


def _scores(checkpoint: str | Path, suite: Suite) -> list[Plain]:
    """The checkpoint's scores by task on the suite's labelled split."""
    report = evaluate([checkpoint] if isinstance(checkpoint, str) else {"made": checkpoint}, suite=suite)
    return [
        {
            "task": row.task, "metric": row.metric, "score": row.score.value, "n": row.score.n,
            "low": row.score.low, "high": row.score.high, "lower_is_better": row.score.lower_is_better,
        }
        for row in report.rows
    ]  # fmt: skip


# --- the kinds of rows -----------------------------------------------------------------------------------------


def _given(asked: Asked, folder: Path) -> Made:
    return Made(asked.row.name)


def _merged(asked: Asked, folder: Path) -> Made:
    output = folder / "merged.safetensors"
    request = requested((), {**asked.row.keywords, "output": output}, suite=asked.suite)
    started = time.perf_counter()
    receipt = merge_requested(request)
    return Made(output, _cost(started), warnings=receipt.warnings)


def _adapted(asked: Asked, folder: Path) -> Made:
    output, row = folder / "adapted", asked.row
    keywords = {**row.keywords, "iterations": row.iterations, "adapt_split": asked.split, "seed": asked.seed}
    request = adapt_requested(asked.suite, (), keywords)
    _import_library(asked.suite)
    started = time.perf_counter()
    receipt = adapt_asked(request, AdaptRunning(output=output, scores=False, heard=_limit(asked.seconds)))
    cost, report = _cost(started), receipt.report
    made = Made(output, cost, report["protocol"]["updates"], receipt.warnings)
    if report["stopped"] is None:
        return made
    choice = _kept_update(output, report)
    return Made(output, cost, made.updates, made.warnings, report["stopped"]["final"], choice)


def _chosen(asked: Asked, folder: Path) -> Made:
    output, row = folder / "adapted", asked.row
    running = AdaptRunning(output=output, heard=_limit(asked.seconds))
    budget = BUDGET if row.iterations is None else row.iterations
    _import_library(asked.suite)
    receipt = adapt_auto(asked.suite, running, budget=budget, seed=asked.seed, adapt_split=asked.split, **row.keywords)
    report = receipt.report
    cost = Cost(sum(report["timing"]["candidates"].values()), peak_memory())  # scoring all candidates is no part of it
    return Made(
        output, cost, report["protocol"]["updates"], receipt.warnings, report["stopped"]["final"],
        _kept_candidate(report["chosen"]),
    )  # fmt: skip


MAKERS: Mapping[str, Callable[[Asked, Path], Made]] = {
    "given": _given, "static": _merged, "adaptive": _adapted, "auto": _chosen,
}  # fmt: skip


def _import_library(suite: Suite) -> None:
    """Has all of the model's library imported, which is no part of what a method costs."""
    build(suite.backbone, resolve=resolve)


def _cost(started: float) -> Cost:
    return Cost(time.perf_counter() - started, peak_memory())


def _limit(seconds: float) -> Heard:
    """Ends a run whose updates go on for longer than that."""
    started = time.perf_counter()

    def heard(record: StepRecord, total: int) -> None:
        if time.perf_counter() - started > seconds:
            raise Missed(f"{record.update} of {total} updates in {seconds:g} seconds", where="--seconds")

    return heard


# --- choices without labels, and what labels say of them -------------------------------------------------------


def _kept_update(folder: Path, report: Mapping[str, Any]) -> Plain | None:
    """The update that agreement kept against the best by labels and the last; None where no labels looked on."""
    curve = {
        record.update: fmean(record.watched["scores"].values())
        for record in read_trace(folder / "trace.jsonl", report["protocol"]["updates"])
        if record.watched is not None and record.held_out is not None
    }
    kept = report["stopped"]["update"]
    if kept not in curve:
        return None
    best, last = max(curve, key=lambda update: curve[update]), max(curve)
    return {
        "kept": f"update {kept}", "best": f"update {best}", "regret": curve[best] - curve[kept],
        "gain": curve[kept] - curve[last],
    }  # fmt: skip


def _kept_candidate(chosen: Mapping[str, Any]) -> Plain | None:
    """The candidate that agreement kept against the best by labels; None where there are none."""
    scores = {one["name"]: one["score"] for one in chosen["tried"] if one["score"] is not None}
    if chosen["candidate"] not in scores:
        return None
    best = max(scores, key=lambda name: scores[name])
    regret = scores[best] - scores[chosen["candidate"]]
    return {"kept": chosen["candidate"], "best": best, "regret": regret, "gain": None, "tried": chosen["tried"]}
