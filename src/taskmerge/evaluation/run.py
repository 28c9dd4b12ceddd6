"""`evaluate`: every checkpoint on every task, each encoder run once over each data set."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.checkpoint.adapted import Manifest
from taskmerge.checkpoint.hub import resolve
from taskmerge.data.corruptions import Corruption, corruptions
from taskmerge.data.loading import LoadOptions
from taskmerge.errors import UsageError, located
from taskmerge.evaluation.baseline import check_comparable, check_data
from taskmerge.evaluation.checkpoints import Encoder, check_encoders, encoders
from taskmerge.evaluation.collecting import Findings, described, left_out, report_of
from taskmerge.evaluation.estimates import Rows as Contributions
from taskmerge.evaluation.features import MOST as MOST_FEATURES
from taskmerge.evaluation.features import feature_set
from taskmerge.evaluation.heads import Heads
from taskmerge.evaluation.judging import Evaluation, Finding, Scored, finding
from taskmerge.evaluation.metrics import contributions
from taskmerge.evaluation.scores import FeatureSet, Report
from taskmerge.evaluation.workload import Choice, DataSet, Key, chosen, portions
from taskmerge.experts.arguments import Arguments
from taskmerge.models.backbones import build
from taskmerge.models.outputs import Forward, passes
from taskmerge.numerics.device import named_device
from taskmerge.specs import keywords as read
from taskmerge.specs.keywords import Globs, Location, Names
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Progress, unwatched

BATCH = 64
Portion = Sequence[Sequence[DataSet]]
"""Data sets that are held at once; those of one group have the same inputs."""
Work = Sequence[tuple[Encoder, Sequence[Sequence[DataSet]]]]
"""The groups of data sets that each encoder is run over."""


def evaluate(
    checkpoints: Arguments, *, suite: Suite | str | Path, split: str = "test", tasks: Names = None,
    limit: int | None = None, seed: int = 0, batch_size: int = BATCH, device: str | torch.device = "auto",
    cross: bool = False, compare: str | None = None, corrupt: Names = None, severity: int = 5,
    loss_correlation: bool = False, features: int | None = None, heads: Location = None, skip_bad: bool = False,
    cache: Location = None, allow_pickle: bool = False, map: Globs = None, progress: Progress | None = None,
    manifests: Mapping[Path, Manifest] | None = None, baseline: Report | None = None,
) -> Report:  # fmt: skip
    """Scores checkpoints on a suite's tasks, each task by its own head.

    `checkpoints` are files, folders, quoted globs or `name=path`, and the words `base` and `experts` (each task's
    own expert on its task); or a mapping from names to paths or state dicts. Scores are normalised by the experts'
    if these are evaluated in the same run: `experts` is among the checkpoints, or `cross`, `compare` or
    `loss_correlation` needs them. `limit` takes that many items of each split, drawn with `seed`. `cross` scores
    every expert with every task's head on that task's data. `compare="experts"` counts what the expert gets right
    and a checkpoint wrong, and the other way round. `corrupt` adds every task with its pictures corrupted.
    `loss_correlation` compares label-free losses with the true one. `features` keeps the features and predictions
    of that many items of each task (at most 500, drawn with `seed`) in the report's `features`. `heads` is a folder of
    TASK.safetensors that replaces the suite's heads, `map` says how files name tensors (`FROM* = TO*`). `manifests` are
    what folders of `adapt` will say of themselves, where that is not written yet. `baseline` is an earlier report that
    this one is to be compared with: what cannot be is found out before the work.

    Raises a TaskmergeError: UsageError for wrong options or a wrong suite, BadFile for what cannot be read, Mismatch
    for checkpoints or heads that do not fit and for a baseline of something else, NotEnough for too little memory,
    BadNumber for NaN in features.
    """
    started = time.perf_counter()
    whole = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite))[0])
    _check(compare, limit, batch_size, severity, seed, features)
    corrupted = corruptions(read.names(corrupt or (), "--corrupt"), severity)
    picked = replace(whole, tasks=chosen(whole, None if tasks is None else read.names(tasks, "--tasks"), split))
    notes = list(picked.notes)
    loading = LoadOptions(
        resolve=resolve, limit=limit, seed=seed, skip_bad=skip_bad, cache=Path(cache) if cache else None,
        note=notes.append,
    )  # fmt: skip
    with ExitStack() as stack:
        opened = encoders(
            checkpoints, picked, resolve=resolve, stack=stack, cross=cross,
            with_experts=compare is not None or loss_correlation, allow_pickle=allow_pickle,
            manifests=manifests or {},
        )  # fmt: skip
        if baseline is not None:
            _check_baseline(baseline, picked, split, opened, corrupted)
        backbone = build(picked.backbone, resolve=resolve, renamings=read.globs(map or (), "--map"))
        given = Heads(
            picked, backbone, device_for(device), stack, Path(heads) if heads else None, allow_pickle, notes.append
        )
        forward = _ready(opened, given, batch_size, progress or unwatched)
        choice = Choice(split, loading, (None, *corrupted))
        asked = Evaluation(picked, opened, choice, seed, compare=compare is not None,
                           loss_correlation=loss_correlation, features=features)  # fmt: skip
        findings = _findings(asked, given, forward, baseline)
        given.check_unchanged(opened)
    return report_of(asked, findings, notes, _timing(forward, time.perf_counter() - started))


def _check_baseline(
    baseline: Report, suite: Suite, split: str, opened: Sequence[Encoder], corrupted: Sequence[Corruption]
) -> None:
    """Refuses a baseline of something else, before the work."""
    check_comparable(
        baseline, suite=suite.name, split=split, names=[encoder.row for encoder in opened],
        tasks=[task.name for task in suite.tasks],
        conditions=[(None, None), *((corruption.name, corruption.severity) for corruption in corrupted)],
    )  # fmt: skip


def _ready(opened: Sequence[Encoder], heads: Heads, batch_size: int, progress: Progress) -> Forward:
    """What runs the encoder, with the heads in memory; refuses encoders that are not of its kind."""
    forward = Forward(heads.backbone, heads.device, batch_size, heads.base, progress, heads.note)
    check_encoders(opened, heads.backbone, heads.base)
    with forward.room():
        heads.load(opened)
    return forward


def device_for(name: str | torch.device) -> torch.device:
    """The device that encoders run on; `auto` is a GPU where there is one."""
    return named_device(read.spelled(name, "--device"), accelerate=True)


# --- from portions of data to judged outputs -------------------------------------------------------------------


def _findings(asked: Evaluation, heads: Heads, forward: Forward, baseline: Report | None) -> Findings:
    """Reads the data in portions, and judges the encoders on each."""
    split, data_sets = asked.choice.split, len(asked.suite.tasks) * len(asked.choice.corrupt)
    findings: list[Finding] = []
    data: list[dict[str, Any]] = []
    warnings: list[str] = []
    samples = 0
    for portion in _read(asked, forward):
        members = [member for group in portion for member in group]
        data += [described(member, split) for member in members]
        if baseline is not None:
            check_data(baseline, data)
        warnings += [left_out(member, split) for member in members if member.items.skipped]
        work = _work(asked.encoders, portion)
        samples += sum(_encodings(encoder, group) for encoder, groups in work for group in groups)
        forward.total = samples * data_sets // len(data)  # portions to come are taken to be like these
        findings += _judged(asked, heads, forward, work)
    return Findings(tuple(findings), tuple(data), tuple(warnings))


def _read(asked: Evaluation, forward: Forward) -> Iterator[Portion]:
    """The portions of the data, one in memory at a time."""
    loaded = portions(
        asked.suite.tasks, asked.choice, forward.backbone.prepare,
        reading=lambda name: forward.progress(forward.done, None, f"reading {name}"),
    )  # fmt: skip
    while True:
        with forward.timed("reading"):
            portion = next(loaded, None)
        if portion is None:
            return
        yield portion


def _work(encoders: Sequence[Encoder], portion: Portion) -> Work:
    """What each encoder is run over. The experts come first: others are compared with them."""
    work = []
    for encoder in sorted(encoders, key=lambda encoder: encoder.kind != "expert"):
        own = [[data for data in group if encoder.scored_on(data.task)] for group in portion]
        work.append((encoder, [group for group in own if group]))
    return [(encoder, groups) for encoder, groups in work if groups]


def _encodings(encoder: Encoder, group: Sequence[DataSet]) -> int:
    """How many items the encoder is run over for data sets of the same inputs: tasks with a block apart."""
    return len(group[0].items) * len(passes([data.task for data in group], encoder.blocks))


def _judged(asked: Evaluation, heads: Heads, forward: Forward, work: Work) -> Iterator[Finding]:
    """Every encoder on every data set of one portion; data sets with the same inputs share one pass."""
    experts: dict[Key, Tensor] = {}
    for encoder, groups in work:
        forward.fill(encoder.row, encoder.checkpoint, encoder.blocks)
        for group in groups:
            for scored in _scored(asked, heads, forward, encoder, group):
                if scored.outputs is not None and encoder.own_task == scored.data.task.name:
                    experts[scored.data.key] = scored.outputs
                with forward.timed("scoring"):
                    result = finding(asked, encoder, scored, experts)
                yield result


def _scored(
    asked: Evaluation, heads: Heads, forward: Forward, encoder: Encoder, group: Sequence[DataSet]
) -> list[Scored]:
    """What the items of each data set contribute to its metric, the outputs where they are compared, and the features
    of a sample where they are kept."""
    given = [(data.task, heads.of(encoder, data.task)) for data in group]
    rows: list[list[Contributions]] = [[] for _ in group]
    kept: list[list[Tensor]] = [[] for _ in group]
    features: list[FeatureSet | None] = [None for _ in group]
    for part in forward.outputs(group[0].items.inputs, given):
        data, stop = group[part.place], part.start + len(part.values)
        with forward.timed("scoring"), located(forward.where(data.task)):
            rows[part.place].append(contributions(data.task.metric, part.values, data.labels[part.start : stop]))
        if asked.compares(data.task):
            kept[part.place].append(part.values)
        if (places := asked.sample(encoder, data)) is not None:
            head, normalised = given[part.place][1], forward.backbone.normalised
            features[part.place] = feature_set(encoder, data, head, part, places, normalised=normalised)
    outputs = [torch.cat(parts) if parts else None for parts in kept]
    return [
        Scored(data, np.concatenate(parts), whole, sampled)
        for data, parts, whole, sampled in zip(group, rows, outputs, features, strict=True)
    ]


# --- words -----------------------------------------------------------------------------------------------------


def _check(
    compare: str | None, limit: int | None, batch_size: int, severity: int, seed: int, features: int | None
) -> None:  # fmt: skip
    """Options whose values the types do not check."""
    if compare not in (None, "experts"):
        raise UsageError(f"`{compare}` cannot be compared with", where="--compare", hint="it takes `experts`")
    for flag, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None:
            read.items(value, flag)
    if features is not None and not 1 <= read.whole(features, "--features") <= MOST_FEATURES:
        hint = f"give 1 to {MOST_FEATURES}"
        raise UsageError(f"features of {features} items of a task are not kept", where="--features", hint=hint)
    if not 1 <= read.whole(severity, "--severity") <= 5:
        raise UsageError(f"there is no severity {severity}", where="--severity", hint="give 1 to 5")
    if read.whole(seed, "--seed") < 0:
        raise UsageError(f"{seed} is no seed", where="--seed", hint="give 0 or more")


def _timing(forward: Forward, seconds: float) -> dict[str, float]:
    """The report's timing: seconds by phase, and how fast samples were encoded."""
    encoding = forward.seconds["encoding"]
    rate = forward.done / encoding if encoding else 0.0
    return {**forward.seconds, "total": seconds, "samples": float(forward.done), "samples_per_second": rate}
