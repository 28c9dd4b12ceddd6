"""Choice without labels: checkpoints ordered by agreement with the experts, and what labels say of that choice."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from taskmerge.errors import unknown_name
from taskmerge.evaluation.checkpoints import EXPERTS, argument_names
from taskmerge.evaluation.criteria import CRITERIA
from taskmerge.evaluation.label_free import ADAPT, Judged, judge
from taskmerge.evaluation.run import BATCH, device_for, evaluate
from taskmerge.evaluation.scores import Report
from taskmerge.evaluation.selection import rows_of
from taskmerge.experts.arguments import Arguments, named_files
from taskmerge.specs.keywords import Globs, Location, Names, given, globs, names
from taskmerge.specs.suite import Suite, Task
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note, Progress, unheard
from taskmerge.version import __version__

SPLIT = "test"
OTHERS = ("entropy",)
"""Criteria that are reported beside the one that chooses."""


def rank(
    checkpoints: Arguments,
    *,
    suite: Suite | str | Path,
    by: str = "agreement",
    adapt_split: str = ADAPT,
    split: str = SPLIT,
    tasks: Names = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    device: str | torch.device = "auto",
    cross: bool = False,
    compare: str | None = None,
    corrupt: Names = None,
    severity: int = 5,
    loss_correlation: bool = False,
    heads: Location = None,
    skip_bad: bool = False,
    cache: Location = None,
    allow_pickle: bool = False,
    map: Globs = None,
    progress: Progress | None = None,
    baseline: Report | None = None,
    note: Note = unheard,
) -> Report:
    """Orders checkpoints by a criterion that needs no labels, computed on the unlabelled `adapt_split`.

    The report's `choices` hold every checkpoint's value and place by `by` and by entropy. Where the tasks' `split` is
    labelled, the checkpoints and the experts are evaluated on it too, as `evaluate` does with the same options, and the
    choices say what labels make of them. Labels never touch the order. What judging has to note is in the report too;
    `note` hears it when it is known: of tasks that no criterion judges, before anything is done.
    """
    said = given(locals(), ("checkpoints", "suite", "by", "adapt_split", "note"))
    check_criterion(by, "--rank-by")
    whole = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite))[0])
    named = None if tasks is None else names(tasks, "--tasks")
    check_split(whole, split, named)
    notes: list[str] = []

    def heard(text: str) -> None:
        notes.append(text)
        note(text)

    started = time.perf_counter()
    judged = judge(
        checkpoints, suite=whole, split=adapt_split, tasks=named, limit=limit, seed=seed, batch_size=batch_size,
        device=device_for(device), cache=Path(cache) if cache else None, skip_bad=skip_bad, heads=heads,
        allow_pickle=allow_pickle, map=globs(map or (), "--map"), progress=progress, note=heard,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if labelled(whole, split, named):
        report = evaluate(with_experts(checkpoints), suite=whole, **said)
        report = replace(report, timing=with_judging(report.timing, seconds))
    else:
        report = unscored(whole, split)
    ranked = choices(judged, report, by)
    notes = [*notes, *report.notes, *summary(ranked, report, by, adapt_split)]
    return replace(report, choices=ranked, notes=tuple(dict.fromkeys(notes)))


def check_criterion(name: str, where: str) -> None:
    """Refuses what is no criterion."""
    if name not in CRITERIA:
        raise unknown_name("criterion", name, CRITERIA, where=where)


def check_split(suite: Suite, split: str, tasks: Sequence[str] | None) -> None:
    """Refuses a split that no task has. Without the default one, a suite only has no labels."""
    splits = {name for task in _picked(suite, tasks) for name in task.splits}
    if splits and split not in splits and split != SPLIT:
        raise unknown_name("split", split, splits, where="--split")


def labelled(suite: Suite, split: str, tasks: Sequence[str] | None) -> bool:
    """Whether every task has this split, with labels."""
    return all(split in task.splits and task.splits[split].y is not None for task in _picked(suite, tasks))


def _picked(suite: Suite, tasks: Sequence[str] | None) -> list[Task]:
    return [task for task in suite.tasks if not tasks or task.name in tasks]


def with_judging(timing: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The seconds of an evaluation with those that judging took before it."""
    return {**timing, "judging": seconds, "total": timing["total"] + seconds}


def with_experts(checkpoints: Arguments) -> Arguments:
    """The checkpoints and the experts, to whose scores theirs are relative."""
    if isinstance(checkpoints, Mapping):
        return [*(f"{name}={path}" for name, path in named_files(checkpoints, "an order without labels")), EXPERTS]
    plain = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    return plain if EXPERTS in argument_names(plain) else [*plain, EXPERTS]


def unscored(suite: Suite, split: str) -> Report:
    """The report of a suite without labels."""
    note = f"split `{split}` is not labelled everywhere: nothing is scored"
    return Report(__version__, suite.name, split, (), (), (), (), notes=(note,))


def choices(judged: Sequence[Judged], report: Report | None, by: str) -> tuple[dict[str, Any], ...]:
    """Every checkpoint's place by the criterion that chooses and by those reported beside it, with its scores if there
    is a report that has them."""
    averages = report.averages if report else ()
    means = {average.encoder: average for average in averages if average.corruption is None}
    places: list[dict[str, Any]] = []
    for name in dict.fromkeys((by, *OTHERS)):
        values = criterion_means(judged, name)
        for place, encoder in enumerate(ordered(values, name), start=1):
            mean = means.get(encoder)
            places.append({
                "encoder": encoder, "criterion": name, "value": values[encoder], "rank": place,
                "n": sum(task.n for task in judged if task.encoder == encoder and name in task.values),
                "average": mean.average if mean else None, "normalised": mean.normalised if mean else None,
            })  # fmt: skip
    return tuple(places)


def criterion_means(judged: Sequence[Judged], name: str) -> dict[str, float]:
    """The mean of a criterion over each checkpoint's tasks; checkpoints without a task it judges are left out."""
    values: dict[str, list[float]] = {}
    for task in judged:
        if name in task.values:
            values.setdefault(task.encoder, []).append(task.values[name])
    return {encoder: fmean(of_tasks) for encoder, of_tasks in values.items()}


def ordered(values: Mapping[str, float], name: str) -> list[str]:
    """Checkpoints from the best to the worst; equal ones by name."""
    sign = 1 if CRITERIA[name].lower_is_better else -1
    return sorted(values, key=lambda encoder: (sign * values[encoder], encoder))


def summary(chosen: Sequence[Mapping[str, Any]], report: Report, by: str, adapt_split: str) -> list[str]:
    """Notes: what was chosen, how good that is by labels, and how far the experts themselves can be trusted."""
    first = {choice["criterion"]: choice for choice in chosen if choice["rank"] == 1}
    if by not in first:
        return [f"no task of this suite can be judged by {by}"]
    notes = [
        f"{by} on split `{adapt_split}` chooses {first[by]['encoder']} ({first[by]['value']:z.4f}); no label was read"
    ]
    scored = [choice for choice in chosen if choice["normalised"] is not None]
    if not scored:
        return notes
    best = max(scored, key=lambda choice: choice["normalised"])
    scores = [f"{name} {100 * choice['normalised']:z.1f} ({choice['encoder']})" for name, choice in first.items()]
    notes.append(f"normalised score on `{report.split}` of the choice by " + ", by ".join(scores)
                 + f"; best by labels {100 * best['normalised']:z.1f} ({best['encoder']})")  # fmt: skip
    return [*notes, *_trust(report, adapt_split)]


def _trust(report: Report, adapt_split: str) -> list[str]:
    """How often the experts are right on labelled items: on their own training items they are so more often."""
    own = {row.task: row.correct for row in rows_of(report, EXPERTS) if row.correct is not None}
    if not own:
        return []
    shares = ", ".join(f"{task} {100 * float(correct.mean()):.1f}" for task, correct in own.items())
    return [f"the experts agree with the labels of `{report.split}` on {shares} percent of items; items of "
            f"`{adapt_split}` that an expert was trained on flatter it"]  # fmt: skip
