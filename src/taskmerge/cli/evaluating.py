"""What `taskmerge eval` does with its words: options checked, then evaluate, write, print, and judge."""

import math
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from taskmerge.cli import show, writing
from taskmerge.cli.eval_words import EvalWords
from taskmerge.cli.meter import Meter
from taskmerge.cli.reads import Reads, reads
from taskmerge.cli.words import given_options
from taskmerge.data.cache import default_cache
from taskmerge.errors import BadOutput, TaskmergeError, UsageError
from taskmerge.evaluation.baseline import against_baseline
from taskmerge.evaluation.checkpoints import EXPERTS, argument_names, named_arguments
from taskmerge.evaluation.feature_files import NAME as FEATURES
from taskmerge.evaluation.feature_files import write_features
from taskmerge.evaluation.results import dumps, read_report, to_json
from taskmerge.evaluation.run import evaluate
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.thresholds import NORMALISED, Threshold, against_thresholds, missed, thresholds
from taskmerge.evaluation.workload import chosen
from taskmerge.reports.runs import REPORT
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.workflows.choose import rank

KEYWORDS = frozenset(signature(evaluate).parameters) - {"checkpoints", "suite", "cache", "baseline"}
"""What `evaluate` takes under the same name."""


def run(words: EvalWords) -> None:
    """Carries out one `eval` command."""
    form = _form(words)
    _check_words(words)
    _check_places(words)
    path, note = find_suite(words.suite)
    show.notices([note] if note else [], (), words.quiet)
    suite = load_suite(path)
    inputs = _reads(words, suite)
    inputs.check_kept(_files(words))
    wanted = _thresholds(words, suite)
    baseline = read_report(words.baseline) if words.baseline else None
    with Meter(words.quiet) as meter:
        told: list[str] = []
        report = _report(suite, words, baseline, meter, told)
    report, failure = _checked(report, wanted, baseline, words.tolerance or 0.0)
    unwritten = _written(report, words, inputs)
    print(_rendered(report, form), end="")
    show.notices([note for note in report.notes if note not in told], report.warnings, words.quiet)
    show.say(_summary(report), words.quiet)
    if unwritten is not None:
        raise unwritten
    if failure is not None:
        raise failure


def _report(
    suite: Suite, words: EvalWords, baseline: Report | None, meter: Meter, told: list[str]
) -> Report:  # fmt: skip
    """The scores, or under --rank-by the order without labels and what labels say of it.

    `told` gets the notes that were shown when they were known.
    """

    def tell(note: str) -> None:
        told.append(note)
        show.notices([note], (), words.quiet)

    keywords: dict[str, Any] = {name: value for name, value in given_options(words).items() if name in KEYWORDS}
    keywords |= {"suite": suite, "cache": _cache(words), "progress": meter.update, "baseline": baseline}
    if words.rank_by is None:
        return evaluate(words.checkpoints or [], **keywords)
    if words.adapt_split is not None:
        keywords["adapt_split"] = words.adapt_split
    return rank(words.checkpoints or [], by=words.rank_by, note=tell, **keywords)


# --- before ----------------------------------------------------------------------------------------------------


def _form(words: EvalWords) -> str:
    """What stdout gets: table, json, markdown or csv."""
    forms = {"json": words.json, "markdown": words.markdown, "csv": words.csv == "-"}
    asked = [form for form, wanted in forms.items() if wanted]
    if len(asked) > 1:
        flags = " and ".join("--csv -" if form == "csv" else f"--{form}" for form in asked)
        raise UsageError(f"{flags} cannot both be printed", hint="-o FILE writes JSON, --csv FILE writes CSV")
    return asked[0] if asked else "table"


def _check_words(words: EvalWords) -> None:
    """Options that say how something is done that is not asked for, or nothing that can be."""
    pairs = (
        ("severity", words.severity, "corrupt", words.corrupt),
        ("adapt-split", words.adapt_split, "rank-by", words.rank_by),
        ("tolerance", words.tolerance, "baseline", words.baseline),
    )
    for flag, value, other, needed in pairs:
        if value is not None and needed is None:
            complaint, hint = f"says nothing without --{other}", f"give --{other} too, or leave it out"
            raise UsageError(complaint, where=f"--{flag}", hint=hint)
    if words.tolerance is not None and not 0 <= words.tolerance < math.inf:
        raise UsageError(f"{words.tolerance} is no tolerance", where="--tolerance", hint="such as 0.005")
    if words.features is not None and words.rank_by is not None:
        hint = "leave --rank-by out: features are kept of items with labels"
        raise UsageError("--features and --rank-by do not go together", hint=hint)
    if words.features is not None and _folder(words) is None:
        hint = "give -o FOLDER/: they are kept there, beside the report"
        raise UsageError("features are written into a folder", where="--features", hint=hint)
    if words.no_cache and words.cache:
        raise UsageError("--cache and --no-cache contradict each other", hint="give one of them")
    if str(words.output) == "-":
        raise UsageError("`-` is no file", where="--output", hint="--json prints the report")


def _files(words: EvalWords) -> list[Path]:
    """What is written besides."""
    folder = _folder(words)
    output = words.output if folder is None else folder / REPORT
    features = folder / FEATURES if folder is not None and words.features else None
    return [path for path in (output, words.csv_file, features) if path is not None]


def _folder(words: EvalWords) -> Path | None:
    """The folder for report.json with its page, if -o names one: it is there, or ends like no file."""
    output = words.output
    if output is None or not (output.is_dir() or (not output.suffix and not output.exists())):
        return None
    return output


def _check_places(words: EvalWords) -> None:
    """Whether everything can be written where it is wanted."""
    files, folder = _files(words), _folder(words)
    outputs = [path for path in (words.output, words.csv_file) if path is not None]
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise UsageError(f"{files[0]} cannot be both JSON and CSV", where="--csv", hint="name two files")
    if folder is not None:
        writing.check_folder(folder, overwrite=words.overwrite)
    for path in files:
        writing.check_target(path, overwrite=words.overwrite)
    if words.clip_benchmark is not None:
        writing.check_folder(words.clip_benchmark, overwrite=words.overwrite)


def _reads(words: EvalWords, suite: Suite) -> Reads:
    """What the command reads."""
    checkpoints = [path for _, path in named_arguments(words.checkpoints or []) if isinstance(path, Path)]
    return reads(suite, checkpoints, words.heads)


def _thresholds(words: EvalWords, suite: Suite) -> tuple[Threshold, ...]:
    """Checked before anything is evaluated: against names, and against what will be known."""
    under, over = words.fail_under or (), words.fail_over or ()
    if not under and not over:
        return ()
    names = argument_names(words.checkpoints or [])
    with_experts = EXPERTS in names or words.cross or words.compare or words.loss_correlation or words.rank_by
    tasks = {task.name: task.metric for task in chosen(suite, words.tasks, words.split)}
    experts = [f"expert:{task}" for task in tasks] if with_experts else []
    wanted = thresholds(under, over, tasks=tasks, checkpoints=[*names, *experts])
    for threshold in wanted:
        if threshold.name == NORMALISED and not with_experts:
            complaint = "scores are normalised by the experts', which are not evaluated"
            raise UsageError(complaint, where=threshold.option, hint="add `experts` to the checkpoints")
    return wanted


def _cache(words: EvalWords) -> Path | None:
    """Where decoded items are kept, if anywhere."""
    return None if words.no_cache else words.cache or default_cache()


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


def _written(report: Report, words: EvalWords, inputs: Reads) -> TaskmergeError | None:
    """Writes what was asked for; the error where that fails, which does not cost the printed result."""
    try:
        if (folder := _folder(words)) is not None:
            _write_folder(report, folder, overwrite=words.overwrite)
        elif words.output is not None:
            writing.write_text(words.output, dumps(report), overwrite=words.overwrite)
        if words.csv_file is not None:
            writing.write_text(words.csv_file, _rendered(report, "csv"), overwrite=words.overwrite)
        if words.clip_benchmark is not None:
            from taskmerge.reports.render import clip_benchmark_files

            files = clip_benchmark_files(report)
            inputs.check_kept(words.clip_benchmark / name for name in files)
            writing.write_files(words.clip_benchmark, files, overwrite=words.overwrite)
    except (BadOutput, UsageError) as error:
        return error
    return None


def _write_folder(report: Report, folder: Path, *, overwrite: bool) -> None:
    """report.json, features where they were kept, and the page that is made of both."""
    writing.write_text(folder / REPORT, dumps(report), overwrite=overwrite)
    if report.features:
        write_features(folder / FEATURES, report.features, overwrite=overwrite)
    from taskmerge.cli import reporting  # after what must not be lost

    reporting.write_page(to_json(report), folder, overwrite=overwrite)


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
