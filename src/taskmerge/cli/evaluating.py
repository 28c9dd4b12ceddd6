"""What `taskmerge eval` does with its words: options checked, then evaluate, write, print, and judge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskmerge.cli import show, writing
from taskmerge.cli.meter import Meter
from taskmerge.cli.reads import Reads, reads
from taskmerge.errors import BadOutput, TaskmergeError, UsageError
from taskmerge.evaluation.baseline import against_baseline
from taskmerge.evaluation.checkpoints import EXPERTS, argument_names, named_arguments
from taskmerge.evaluation.results import dumps, read_report
from taskmerge.evaluation.run import evaluate
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.thresholds import NORMALISED, Threshold, against_thresholds, missed, thresholds
from taskmerge.evaluation.workload import chosen
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.workflows.choose import rank

PASSED = (
    "split", "limit", "seed", "device", "cross", "compare", "loss_correlation", "heads", "skip_bad", "allow_pickle",
)  # fmt: skip
NEEDS = {"severity": "corrupt", "adapt_split": "rank_by", "tolerance": "baseline"}
"""Options that say how another one is carried out."""


def run(said: Mapping[str, Any]) -> None:
    """Carries out one `eval` command."""
    form = _form(said)
    _check_words(said)
    for path in _files(said):
        writing.check_target(path, overwrite=said["overwrite"])
    if said["clip_benchmark"] is not None:
        writing.check_folder(said["clip_benchmark"], overwrite=said["overwrite"])
    path, note = find_suite(said["suite"])
    show.notices([note] if note else [], (), said["quiet"])
    suite = load_suite(path)
    inputs = _reads(said, suite)
    inputs.check_kept(_files(said))
    wanted = _thresholds(said, suite)
    baseline = read_report(said["baseline"]) if said["baseline"] else None
    with Meter(said["quiet"]) as meter:
        told: list[str] = []
        report = _report(suite, said, meter, told)
    report, failure = _checked(report, wanted, baseline, said["tolerance"] or 0.0)
    unwritten = _written(report, said, inputs)
    print(_rendered(report, form), end="")
    show.notices([note for note in report.notes if note not in told], report.warnings, said["quiet"])
    show.say(_summary(report), said["quiet"])
    if unwritten is not None:
        raise unwritten
    if failure is not None:
        raise failure


def _report(suite: Suite, said: Mapping[str, Any], meter: Meter, told: list[str]) -> Report:
    """The scores, or under --rank-by the order without labels and what labels say of it.

    `told` gets the notes that were shown when they were known.
    """

    def tell(note: str) -> None:
        told.append(note)
        show.notices([note], (), said["quiet"])

    checkpoints, keywords = said["checkpoints"] or [], {**_keywords(said), "progress": meter.update}
    if said["rank_by"] is None:
        return evaluate(checkpoints, suite=suite, **keywords)
    if said["adapt_split"] is not None:
        keywords["adapt_split"] = said["adapt_split"]
    return rank(checkpoints, suite=suite, by=said["rank_by"], note=tell, **keywords)


# --- before ----------------------------------------------------------------------------------------------------


def _form(said: Mapping[str, Any]) -> str:
    """What stdout gets: table, json, markdown or csv."""
    asked = [name for name in ("json", "markdown") if said[name]] + (["csv"] if said["csv"] == "-" else [])
    if len(asked) > 1:
        flags = " and ".join("--csv -" if name == "csv" else f"--{name}" for name in asked)
        raise UsageError(f"{flags} cannot both be printed", hint="-o FILE writes JSON, --csv FILE writes CSV")
    return asked[0] if asked else "table"


def _check_words(said: Mapping[str, Any]) -> None:
    """Options that ask for nothing, or say how something is done that is not asked for."""
    for name, other in NEEDS.items():
        if said[name] is not None and said[other] is None:
            what, hint = f"says nothing without --{_flag(other)}", f"give --{_flag(other)} too, or leave it out"
            raise UsageError(what, where=f"--{_flag(name)}", hint=hint)
    for name in ("tasks", "corrupt"):
        if said[name] is not None and not _list(said[name]):
            raise UsageError("names nothing", where=f"--{name}", hint="separate names by commas, or leave it out")
    if said["tolerance"] is not None and not 0 <= said["tolerance"] < math.inf:
        raise UsageError(f"{said['tolerance']} is no tolerance", where="--tolerance", hint="such as 0.005")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _files(said: Mapping[str, Any]) -> list[Path]:
    """What is written besides."""
    if str(said["output"]) == "-":
        raise UsageError("`-` is no file", where="--output", hint="--json prints the report")
    found = [said["output"], Path(said["csv"]) if said["csv"] not in (None, "-") else None]
    paths = [path for path in found if path is not None]
    if len(paths) == 2 and paths[0].absolute() == paths[1].absolute():
        raise UsageError(f"{paths[0]} cannot be both JSON and CSV", where="--csv", hint="name two files")
    return paths


def _reads(said: Mapping[str, Any], suite: Suite) -> Reads:
    """What the command reads."""
    checkpoints = [path for _, path in named_arguments(said["checkpoints"] or []) if path is not None]
    return reads(suite, checkpoints, Path(said["heads"]) if said["heads"] else None)


def _thresholds(said: Mapping[str, Any], suite: Suite) -> tuple[Threshold, ...]:
    """Checked before anything is evaluated: against names, and against what will be known."""
    under, over = said["fail_under"] or (), said["fail_over"] or ()
    if not under and not over:
        return ()
    names = argument_names(said["checkpoints"] or [])
    with_experts = EXPERTS in names or said["cross"] or said["compare"] or said["loss_correlation"] or said["rank_by"]
    tasks = {task.name: task.metric for task in chosen(suite, _list(said["tasks"]) or None, said["split"])}
    experts = [f"expert:{task}" for task in tasks] if with_experts else []
    wanted = thresholds(under, over, tasks=tasks, checkpoints=[*names, *experts])
    for one in wanted:
        if one.name == NORMALISED and not with_experts:
            what = "scores are normalised by the experts', which are not evaluated"
            raise UsageError(what, where=one.option, hint="add `experts` to the checkpoints")
    return wanted


def _keywords(said: Mapping[str, Any]) -> dict[str, Any]:
    """The options as keywords of `evaluate`."""
    found = {name: said[name] for name in PASSED}
    found |= {"tasks": _list(said["tasks"]) or None, "corrupt": _list(said["corrupt"])}
    found |= {name: said[name] for name in ("batch_size", "severity") if said[name] is not None}
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


def _written(report: Report, said: Mapping[str, Any], inputs: Reads) -> TaskmergeError | None:
    """Writes what was asked for; the error where that fails, which does not cost the printed result."""
    try:
        if said["output"] is not None:
            writing.write_text(said["output"], dumps(report), overwrite=said["overwrite"])
        if said["csv"] not in (None, "-"):
            writing.write_text(Path(said["csv"]), _rendered(report, "csv"), overwrite=said["overwrite"])
        if said["clip_benchmark"] is not None:
            from taskmerge.reports.render import clip_benchmark_files

            files = clip_benchmark_files(report)
            inputs.check_kept(said["clip_benchmark"] / name for name in files)
            writing.write_texts(said["clip_benchmark"], files, overwrite=said["overwrite"])
    except (BadOutput, UsageError) as error:
        return error
    return None


def _rendered(report: Report, form: str) -> str:
    """The one document for stdout."""
    if form == "json":
        return dumps(report)
    from taskmerge.reports import render

    forms = {"table": render.console, "markdown": render.markdown, "csv": render.csv}
    return forms[form](report)


def _summary(report: Report) -> str:
    timing = report.timing
    if not timing:
        return "done: nothing was scored"
    return (
        f"done in {timing['total']:.1f} s: {timing['samples']:,.0f} samples, "
        f"{timing['samples_per_second']:,.0f}/s while encoding"
    )
