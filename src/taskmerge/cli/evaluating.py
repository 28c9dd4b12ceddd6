"""What `taskmerge eval` does with its words: options checked, then evaluate, write, print, and judge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.cli import show, writing
from taskmerge.cli.meter import Meter
from taskmerge.errors import TaskmergeError, UsageError
from taskmerge.evaluation.checkpoints import EXPERTS, argument_names
from taskmerge.evaluation.checks import (
    NORMALISED,
    Threshold,
    against_baseline,
    against_thresholds,
    missed,
    thresholds,
)
from taskmerge.evaluation.results import dumps, read_report
from taskmerge.evaluation.run import evaluate
from taskmerge.evaluation.scores import Report
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.workflows.choose import rank

PASSED = (
    "split", "limit", "seed", "device", "cross", "compare", "severity", "loss_correlation", "heads", "skip_bad",
    "allow_pickle",
)  # fmt: skip


def run(said: Mapping[str, Any]) -> None:
    """Carries out one `eval` command."""
    form = _form(said)
    for path in _files(said):
        writing.check_target(path, overwrite=said["overwrite"])
    path, note = find_suite(said["suite"])
    show.notices([note] if note else [], (), said["quiet"])
    suite = load_suite(path)
    wanted = _thresholds(said, suite)
    baseline = read_report(said["baseline"]) if said["baseline"] else None
    with Meter(said["quiet"]) as meter:
        report = _report(suite, said, meter)
    report, failure = _checked(report, wanted, baseline, said["tolerance"] or 0.0)
    _write(report, said)
    print(_rendered(report, form), end="")
    show.notices(report.notes, report.warnings, said["quiet"])
    show.say(_summary(report), said["quiet"])
    if failure is not None:
        raise failure


def _report(suite: Suite, said: Mapping[str, Any], meter: Meter) -> Report:
    """The scores, or under --rank-by the order without labels and what labels say of it."""
    checkpoints, keywords = said["checkpoints"] or [], {**_keywords(said), "progress": meter.update}
    if said["rank_by"] is None:
        return evaluate(checkpoints, suite=suite, **keywords)
    return rank(checkpoints, suite=suite, by=said["rank_by"], adapt_split=said["adapt_split"], **keywords)


# --- before ----------------------------------------------------------------------------------------------------


def _form(said: Mapping[str, Any]) -> str:
    """What stdout gets: table, json, markdown or csv."""
    asked = [name for name in ("json", "markdown") if said[name]] + (["csv"] if said["csv"] == "-" else [])
    if len(asked) > 1:
        flags = " and ".join("--csv -" if name == "csv" else f"--{name}" for name in asked)
        raise UsageError(f"{flags} cannot both be printed", hint="-o FILE writes JSON, --csv FILE writes CSV")
    return asked[0] if asked else "table"


def _files(said: Mapping[str, Any]) -> list[Path]:
    """What is written besides."""
    found = [said["output"], Path(said["csv"]) if said["csv"] not in (None, "-") else None]
    paths = [path for path in found if path is not None]
    if len(paths) == 2 and paths[0].absolute() == paths[1].absolute():
        raise UsageError(f"{paths[0]} cannot be both JSON and CSV", where="--csv", hint="name two files")
    return paths


def _thresholds(said: Mapping[str, Any], suite: Suite) -> tuple[Threshold, ...]:
    """Checked before anything is evaluated: against names, and against what will be known."""
    if said["tolerance"] is not None and said["baseline"] is None:
        raise UsageError("there is nothing to tolerate", where="--tolerance", hint="name an earlier report: --baseline")
    names = argument_names(said["checkpoints"] or [])
    tasks = {task.name: task.metric for task in suite.tasks}
    wanted = thresholds(
        said["fail_under"] or (), said["fail_over"] or (), tasks=tasks,
        checkpoints=[*names, *(f"expert:{task}" for task in tasks)],
    )  # fmt: skip
    with_experts = EXPERTS in names or said["cross"] or said["compare"] or said["loss_correlation"] or said["rank_by"]
    for one in wanted:
        if one.name == NORMALISED and not with_experts:
            what = "scores are normalised by the experts', which are not evaluated"
            raise UsageError(what, where=one.option, hint="add `experts` to the checkpoints")
    return wanted


def _keywords(said: Mapping[str, Any]) -> dict[str, Any]:
    """The options as keywords of `evaluate`."""
    found = {name: said[name] for name in PASSED}
    found |= {"tasks": _list(said["tasks"]) or None, "corrupt": _list(said["corrupt"])}
    if said["batch_size"] is not None:
        found["batch_size"] = said["batch_size"]
    return found | {"cache": _cache(said)}


def _list(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _cache(said: Mapping[str, Any]) -> Path | None:
    """Where decoded items are kept, if anywhere."""
    from taskmerge.data.cache import default_cache

    if said["no_cache"] and said["cache"]:
        raise UsageError("--cache and --no-cache contradict each other", hint="give one of them")
    found: Path = said["cache"] or default_cache()
    return None if said["no_cache"] else found


# --- after -----------------------------------------------------------------------------------------------------


def _checked(
    report: Report, wanted: Sequence[Threshold], baseline: Report | None, tolerance: float
) -> tuple[Report, TaskmergeError | None]:
    """The report with its checks, and the error to end with. What cannot be compared does not cost the result."""
    try:
        records = against_thresholds(report, wanted)
        compared, warnings = against_baseline(report, baseline, tolerance) if baseline else ((), ())
    except TaskmergeError as error:
        return report, error
    checks = (*records, *compared)
    return replace(report, checks=checks, warnings=(*report.warnings, *warnings)), missed(checks)


def _write(report: Report, said: Mapping[str, Any]) -> None:
    if said["output"] is not None:
        writing.write_text(said["output"], dumps(report), overwrite=said["overwrite"])
    if said["csv"] not in (None, "-"):
        writing.write_text(Path(said["csv"]), _rendered(report, "csv"), overwrite=said["overwrite"])


def _rendered(report: Report, form: str) -> str:
    """The one document for stdout."""
    if form == "json":
        return dumps(report)
    from taskmerge.reports import render

    forms = {"table": render.console, "markdown": render.markdown, "csv": render.csv}
    return forms[form](report)


def _summary(report: Report) -> str:
    timing = report.timing
    return (
        f"done in {timing['total']:.1f} s: {timing['samples']:,.0f} samples, "
        f"{timing['samples_per_second']:,.0f}/s while encoding"
    )
