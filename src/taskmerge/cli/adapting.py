"""What `taskmerge adapt` does with its words: one request, then plan, adapt, show."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from taskmerge.adaptation.folder import check_free, resumable
from taskmerge.cli import show, tokens
from taskmerge.cli.adapt_meter import AdaptMeter
from taskmerge.cli.adapt_phrases import masked
from taskmerge.cli.adapt_plan import auto_lines, auto_table, dry_run_lines, dry_run_tables, plan_lines
from taskmerge.cli.adapt_words import AdaptWords
from taskmerge.cli.interrupts import saved_first
from taskmerge.cli.words import flags_of, given_options
from taskmerge.data.cache import default_cache
from taskmerge.errors import Interrupted, UsageError
from taskmerge.evaluation.workload import chosen
from taskmerge.methods.adaptive_registry import RECOMMENDED
from taskmerge.methods.registry import problems
from taskmerge.reports.adapt_tables import candidates_text, scores_text, seed_average, seeds_text
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import unheard
from taskmerge.workflows.adapt_dry_run import dry_run, shorter
from taskmerge.workflows.adapt_report import AdaptReceipt
from taskmerge.workflows.adapt_request import MERGING, SHAPE, AdaptRequest, adapt_requested
from taskmerge.workflows.adapt_seeds import SeedRun, adapt_seeds, started
from taskmerge.workflows.adapted import AdaptRunning, adapt_asked, place_of
from taskmerge.workflows.auto import (
    BUDGET,
    CANDIDATES,
    adapt_auto,
    auto_place,
    auto_started,
    candidate_requests,
    check_auto,
)  # fmt: skip
from taskmerge.workflows.auto_plan import AutoPlan, plan_auto

AUTO, TRYING = "auto", "trying "
OF_ONE = frozenset({
    "block_start", "every", "heads_start", "init", "iterations", "layer", "objective", "origin", "refit_heads", "stop",
    "train", "with_",
})  # fmt: skip
"""Words that are about one method and one run, and say nothing with `--method auto`."""
KEYWORDS = frozenset({*SHAPE, *MERGING})
"""What `adapt_requested` takes under the same name, besides options of methods."""


def run(words: AdaptWords) -> None:
    """Carries out one `adapt` command."""
    show.notices((), problems(), words.quiet)
    _check_words(words)
    if words.method == AUTO:
        _auto(words)
        return
    asked, running = _asked(words), _running(words)
    if words.dry_run:
        _dry_run(asked, running, words)
    elif words.seeds is not None:
        _seeds(asked, running, words.seeds, words)
    else:
        with resumed_later(place_of(asked, running), lambda: resumable(place_of(asked, running))):
            receipt = _adapted(asked, running, words)
        _finish(receipt, words)


def _adapted(
    asked: AdaptRequest, running: AdaptRunning, words: AdaptWords, *, label: str = "", plan: bool = True
) -> AdaptReceipt:
    """Adapts, and tells how it goes: the plan first, then progress."""
    with AdaptMeter(words.quiet, label) as meter:

        def planned(request: AdaptRequest, device: str) -> None:
            meter.shorter, meter.masked = shorter(request, {"updates": 1.0}, device), masked(request.parts)
            if plan:
                _plan(request, device, words)

        return adapt_asked(asked, replace(running, planned=planned, heard=meter.heard, doing=meter.doing))


def _plan(asked: AdaptRequest, device: str, words: AdaptWords) -> None:
    for line in plan_lines(asked, device):
        show.say(line, words.quiet)


@contextmanager
def resumed_later(place: Path, kept: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C becomes Interrupted where something is kept that --resume continues."""
    try:
        yield
    except KeyboardInterrupt:
        if not kept():
            raise
        what, hint = "not finished, kept as it was last saved", "the same command with --resume continues it"
        raise Interrupted(what, where=str(place), hint=hint) from None


def _seeds(asked: AdaptRequest, running: AdaptRunning, count: int, words: AdaptWords) -> None:
    """Several seeds: plan and notes of the first that runs, a line for each, their mean and spread."""
    ran: list[int] = []

    def run_one(request: AdaptRequest, own: AdaptRunning) -> AdaptReceipt:
        ran.append(request.spec.seed)
        first = len(ran) == 1
        label = f"seed {request.spec.seed}: "
        return _adapted(request, own if first else replace(own, note=unheard), words, label=label, plan=first)

    def done(one: SeedRun) -> None:
        show.notices((), [f"seed {one.seed}: {text}" for text in one.report["warnings"]], words.quiet)
        average = f"average {told}, " if (told := seed_average(one)) else ""
        when = f"done in {show.duration(one.report['timing']['seconds'])}" if one.fresh else "finished before"
        show.say(f"seed {one.seed}: {average}{when}", words.quiet)

    with resumed_later(place_of(asked, running), lambda: started(asked, running, count)):
        found = adapt_seeds(asked, running, count, run=run_one, done=done)
    for one in found.runs:
        _write_page(one.report, one.path, words)
    if text := seeds_text(found):
        show.say(text, words.quiet)
    show.document(found.to_dict()) if words.json else show.results(one.path for one in found.runs)


def _auto(words: AdaptWords) -> None:
    """Candidates one after the other, and which of them is kept."""
    inputs, options = tokens.split_adapting(words.inputs or [], flags_of(AdaptWords))
    suite, running = _suite(words), _running(words)
    given = {name: value for name, value in _keywords(words).items() if name not in ("method", "seed")}
    more, budget = {**given, **options}, BUDGET if words.budget is None else words.budget
    told, began = list[str](), time.perf_counter()

    def note(text: str) -> None:
        if text not in told:  # candidates have most of their notes in common
            show.notices([text], (), words.quiet)
        told.append(text)

    with AdaptMeter(words.quiet) as meter:

        def doing(activity: str) -> None:
            if activity.startswith(TRYING):
                show.say(activity, words.quiet)
            else:
                meter.doing(activity)

        running = replace(running, heard=meter.heard, doing=doing, note=note)
        if words.dry_run:
            plan = plan_auto(candidate_requests(suite, inputs, budget, words.seed, options=more), running, budget)
        else:
            with resumed_later(auto_place(running), lambda: auto_started(auto_place(running), CANDIDATES)):
                receipt = adapt_auto(suite, running, inputs, budget=budget, seed=words.seed, **more)
    if words.dry_run:
        _show_auto(plan, running, words)
        return
    show.say(candidates_text(receipt.report["chosen"]), words.quiet)
    _finish(replace(receipt, seconds=time.perf_counter() - began), words)


def _show_auto(plan: AutoPlan, running: AdaptRunning, words: AdaptWords) -> None:
    """The candidates and what they would cost, which is of use even where the output is in the way."""
    if words.json:
        show.document(plan.to_dict())
    else:
        show.print_table(auto_table(plan))
        show.page(auto_lines(plan))
    check_auto(auto_place(running), CANDIDATES, replace(running, resume=words.resume), keep=True)


def _dry_run(asked: AdaptRequest, running: AdaptRunning, words: AdaptWords) -> None:
    """Prints what would be learnt and what it costs, which is of use even where the output is in the way."""
    with AdaptMeter(words.quiet) as meter:
        own = replace(running, planned=lambda request, device: _plan(request, device, words), doing=meter.doing)
        found = dry_run(asked, own)
    if words.json:
        show.document(found.to_dict())
    else:
        for table in dry_run_tables(found):
            show.print_table(table)
        show.page(dry_run_lines(found, words.seeds or 1))
    if words.seeds is None:
        check_free(place_of(asked, running), overwrite=words.overwrite, resume=words.resume)


# --- before ----------------------------------------------------------------------------------------------------


def _check_words(words: AdaptWords) -> None:
    """Options that contradict each other, or say how something is done that is not asked for."""
    if words.no_cache and words.cache:
        raise UsageError("--cache and --no-cache contradict each other", hint="give one of them")
    if words.no_scores and words.split != AdaptWords.split:
        raise UsageError("says nothing with --no-scores", where="--split", hint="leave one of them out")
    if words.every is not None and words.stop is None:
        raise UsageError("says nothing without --stop", where="--every", hint="give --stop agreement too")
    if words.method != AUTO and words.budget is not None:
        raise UsageError("says nothing without --method auto", where="--budget", hint="--iterations is the horizon")
    _check_auto(words)


def _check_auto(words: AdaptWords) -> None:
    """Options that auto decides by itself, or cannot go with."""
    if words.method == AUTO and words.seeds is not None:
        hint = "run it once a seed: --seed 0 -o auto-0, --seed 1 -o auto-1; --seeds goes with the method that it names"
        raise UsageError("does not go with --method auto, which chooses once", where="--seeds", hint=hint)
    said = {name for name in given_options(words) if name in OF_ONE}
    if words.method == AUTO and said:
        flag = f"--{min(said).rstrip('_').replace('_', '-')}"
        hint = "auto tries methods of its own, with the horizon of --budget: name one of them to shape it"
        raise UsageError("does not go with --method auto", where=flag, hint=hint)


def _asked(words: AdaptWords) -> AdaptRequest:
    """The request that the words make; notes say what was chosen where nobody did."""
    inputs, options = tokens.split_adapting(words.inputs or [], flags_of(AdaptWords))
    suite = _suite(words)
    asked = adapt_requested(suite, inputs, {**_keywords(words), **options})
    if words.split != AdaptWords.split:
        chosen(asked.suite, None, words.split)  # one that was named is there
    if words.method is None:
        note = f"no --method: {RECOMMENDED}, the recommended one (`taskmerge methods` lists others)"
        show.notices([note], (), words.quiet)
    return asked


def _suite(words: AdaptWords) -> Suite:
    path, note = find_suite(words.suite)
    show.notices([note] if note else [], (), words.quiet)
    return load_suite(path)


def _keywords(words: AdaptWords) -> dict[str, Any]:
    """What was said of the result, as keywords; what was not said is absent."""
    return {name: value for name, value in given_options(words).items() if name in KEYWORDS}


def _running(words: AdaptWords) -> AdaptRunning:
    """Where it goes, what it may cost."""
    return AdaptRunning(
        output=words.output, overwrite=words.overwrite, resume=words.resume, keep_state=words.keep_state,
        device=words.device or "auto", threads=words.threads, cache=_cache(words), scores=not words.no_scores,
        split=words.split, note=lambda text: show.notices([text], (), words.quiet),
        interruptible=partial(saved_first, quiet=words.quiet),
    )  # fmt: skip


def _cache(words: AdaptWords) -> Path | None:
    """Where decoded items and experts' outputs are kept, if anywhere."""
    return None if words.no_cache else words.cache or default_cache()


# --- after -----------------------------------------------------------------------------------------------------


def _finish(receipt: AdaptReceipt, words: AdaptWords) -> None:
    """Warnings, scores and costs for people, and the result on stdout."""
    show.notices((), receipt.warnings, words.quiet)
    if receipt.scores is not None:
        show.say(scores_text(receipt.scores), words.quiet)
    show.say(_summary(receipt.report, receipt.seconds), words.quiet)
    _write_page(receipt.report, receipt.path, words)
    show.document(receipt.to_dict()) if words.json else show.results([receipt.path])


def _write_page(report: Mapping[str, Any], folder: str, words: AdaptWords) -> None:
    """The page beside a finished run's report.json, where it is asked for."""
    if words.page:
        from taskmerge.cli import reporting

        reporting.write_page(report, Path(folder), overwrite=True)  # of this run, or of an earlier page of it


def _summary(report: Mapping[str, Any], seconds: float) -> str:
    updates, timing = report["learned"]["updates"], report["timing"]
    skipped = f", {report['learned']['skipped']:,} of them skipped" if report["learned"]["skipped"] else ""
    rate = f" ({updates / timing['updates']:.3g}/s)" if updates and timing["updates"] else ""
    several = f" in {report['processes']} processes" if report["processes"] > 1 else ""
    memory = f"peak memory {show.size(timing['peak_memory'])}"
    return f"done in {show.duration(seconds)}{several}: {updates:,} updates{skipped}{rate}, {memory}"
