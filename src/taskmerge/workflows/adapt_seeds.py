"""One adaptation under several seeds: a folder each, and how far their scores lie apart."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from taskmerge.adaptation.folder import check_free, resumable
from taskmerge.checkpoint.adapted import PLACES, is_adapted
from taskmerge.documents import read_object
from taskmerge.errors import BadOutput, UsageError
from taskmerge.workflows.adapt_report import AdaptReceipt
from taskmerge.workflows.adapt_request import AdaptRequest
from taskmerge.workflows.adapted import AdaptRunning, adapt_asked, place_of

AVERAGE = "average"


@dataclass(frozen=True)
class SeedRun:
    """One seed's folder and report (as in report.json); not `fresh` if an earlier command ran it that is resumed."""

    seed: int
    path: str
    report: Mapping[str, Any]
    fresh: bool = True

    def scores(self) -> dict[str, float]:
        """Score by task, and the average; empty where nothing was scored."""
        scores = self.report["scores"]
        if scores is None:
            return {}
        return {**{row["task"]: row["score"] for row in scores["rows"]}, AVERAGE: scores["average"]}


@dataclass(frozen=True)
class Seeds:
    """The runs in the order of their seeds, and what their scores come to."""

    path: str
    runs: tuple[SeedRun, ...]

    def mean(self) -> dict[str, float]:
        """The mean over the seeds of each task's score, and of the average."""
        return {name: fmean(values) for name, values in self._columns().items()}

    def spread(self) -> dict[str, float]:
        """The standard deviation over the seeds (n - 1 below); empty for one seed."""
        return {name: stdev(values) for name, values in self._columns().items() if len(values) > 1}

    def to_dict(self) -> dict[str, object]:
        """The same as plain values, for --json."""
        runs = [{"seed": run.seed, "path": run.path, **run.report} for run in self.runs]
        return {"path": self.path, "seeds": runs, "mean": self.mean(), "spread": self.spread()}

    def _columns(self) -> dict[str, list[float]]:
        every = [run.scores() for run in self.runs]
        return {name: [scores[name] for scores in every] for name in (every[0] if every else {})}


Run = Callable[[AdaptRequest, AdaptRunning], AdaptReceipt]


def adapt_seeds(
    asked: AdaptRequest, running: AdaptRunning, count: int, *, run: Run = adapt_asked,
    done: Callable[[SeedRun], None] = lambda one: None,
) -> Seeds:  # fmt: skip
    """Runs `count` seeds from the request's own on, each by `run` into OUTPUT/seed-SEED; `done` hears of each.

    With `resume`, seeds that are finished stay as they are, the unfinished one is continued, the others start.
    Raises what one adaptation raises; BadOutput before the first starts where any of them finds its place taken.
    """
    if count < 1:
        raise UsageError(f"{count} runs are none", where="--seeds", hint="give 1 or more")
    place = place_of(asked, running)
    if is_adapted(place):
        hint = "name another with -o: every seed gets a folder in it"
        raise BadOutput("is the folder of one adaptation", where=str(place), hint=hint)
    every = [replace(asked, spec=replace(asked.spec, seed=asked.spec.seed + more)) for more in range(count)]
    plans = [(one, _planned(one, replace(running, output=seed_folder(place, one.spec.seed)))) for one in every]
    runs = []
    for one, own in plans:
        runs.append(_kept(one, own) if own.resume and is_adapted(_output(own)) else _run(one, own, run))
        done(runs[-1])
    check_same_experts([run.report for run in runs], place)
    return Seeds(str(place), tuple(runs))


def seed_folder(place: Path, seed: int) -> Path:
    """Where a seed's run goes."""
    return place / f"seed-{seed}"


def started(asked: AdaptRequest, running: AdaptRunning, count: int) -> bool:
    """Whether some seed is finished, or can be continued."""
    place = place_of(asked, running)
    folders = [seed_folder(place, asked.spec.seed + more) for more in range(count)]
    return any(is_adapted(folder) or resumable(folder) for folder in folders)


def _output(running: AdaptRunning) -> Path:
    if running.output is None:
        raise ValueError("a seed's run has a folder")
    return running.output


def _planned(asked: AdaptRequest, running: AdaptRunning) -> AdaptRunning:
    """How one seed runs: resumed where there is something to resume. Raises BadOutput where its place is taken."""
    output = _output(running)
    if running.resume and is_adapted(output) and not resumable(output):
        return running
    resume = running.resume and resumable(output)
    check_free(output, overwrite=running.overwrite, resume=resume)
    return replace(running, resume=resume)


def _run(asked: AdaptRequest, running: AdaptRunning, run: Run) -> SeedRun:
    receipt = run(asked, running)
    return SeedRun(asked.spec.seed, receipt.path, receipt.report)


def _kept(asked: AdaptRequest, running: AdaptRunning) -> SeedRun:
    """A seed that an earlier command finished, if it was asked for the same."""
    folder = _output(running)
    return SeedRun(asked.spec.seed, str(folder), finished_report(folder, asked), fresh=False)


def finished_report(folder: Path, asked: AdaptRequest) -> dict[str, Any]:
    """The report of a finished folder, if it was asked for the same. Raises UsageError if not, BadFile without one."""
    file = folder / PLACES["report"]
    report = read_object(file, hint="--overwrite runs all again")
    same = report.get("recipe") == json.loads(json.dumps(asked.spec.recipe()))
    if not same or report.get("merging", {}) != asked.shaping():
        hint = "resume with the options that the first runs had, or run all again with --overwrite"
        raise UsageError("is the result of another recipe", where=str(folder), hint=hint)
    return report


def check_same_experts(reports: Iterable[Mapping[str, Any]], place: Path) -> None:
    """Raises UsageError where runs that an earlier command finished were of other experts than those that are there."""
    if len({json.dumps(report["experts"], sort_keys=True) for report in reports}) > 1:
        hint = "start again with --overwrite"
        raise UsageError("the experts have changed since the first runs were finished", where=str(place), hint=hint)
