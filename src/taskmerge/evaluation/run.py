"""`evaluate`: every checkpoint on every task, each encoder run once over each data set."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskmerge.checkpoint.hub import resolve
from taskmerge.data.corruptions import Corruption, corruptions
from taskmerge.data.loading import LoadOptions
from taskmerge.errors import BadNumber, NotEnough, UsageError, located
from taskmerge.evaluation.analyses import correlations, discrepancy
from taskmerge.evaluation.averages import averages, normalised
from taskmerge.evaluation.checkpoints import Arguments, Encoder, encoders
from taskmerge.evaluation.estimates import Rows as Contributions
from taskmerge.evaluation.faults import blamed, check_fits
from taskmerge.evaluation.heads import Heads
from taskmerge.evaluation.metrics import contributions, score_of
from taskmerge.evaluation.scores import Report, Row
from taskmerge.evaluation.selection import EXPERT
from taskmerge.evaluation.workload import Choice, DataSet, chosen, portions
from taskmerge.models.backbones import build
from taskmerge.models.contract import Backbone, Head
from taskmerge.models.encode import encode
from taskmerge.models.fill import fill
from taskmerge.numerics.device import named_device
from taskmerge.specs.suite import DENSE, Suite, Task
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.version import __version__

BATCH = 64
PHASES = ("reading", "filling", "encoding", "scoring")
Key = tuple[str, Corruption | None]
Progress = Callable[[int, int | None, str], None]
"""Called with samples done, samples in all (None while data is read), and what is going on."""


def evaluate(
    checkpoints: Arguments,
    *,
    suite: Suite | str | Path,
    split: str = "test",
    tasks: str | Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    device: str = "auto",
    cross: bool = False,
    compare: str | None = None,
    corrupt: str | Sequence[str] = (),
    severity: int = 5,
    loss_correlation: bool = False,
    heads: str | Path | None = None,
    skip_bad: bool = False,
    cache: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Scores checkpoints on a suite's tasks, each task by its own head.

    `checkpoints` are files, folders, quoted globs or `name=path`, and the words `base` and `experts` (each task's own
    expert on its task). Scores are normalised by the experts' if these are evaluated in the same run: `experts` is
    among the checkpoints, or `cross`, `compare` or `loss_correlation` needs them. `limit` takes that many items of each
    split, drawn with `seed`. `cross` scores every expert with every task's head on that task's data.
    `compare="experts"` counts what the expert gets right and a checkpoint wrong, and the other way round. `corrupt`
    adds every task with its pictures corrupted. `loss_correlation` compares label-free losses with the true one.
    `heads` is a folder of TASK.safetensors that replaces the suite's heads.

    Raises a TaskmergeError: UsageError for wrong options or a wrong suite, BadFile for what cannot be read, Mismatch
    for checkpoints or heads that do not fit, NotEnough for too little memory, BadNumber for NaN in features.
    """
    started = time.perf_counter()
    found = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite))[0])
    _check(compare, limit, batch_size, severity, seed)
    picked = replace(found, tasks=chosen(found, None if tasks is None else _names(tasks), split))
    notes = list(picked.notes)
    loading = LoadOptions(
        resolve=resolve, limit=limit, seed=seed, skip_bad=skip_bad, cache=Path(cache) if cache else None,
        note=notes.append,
    )  # fmt: skip
    choice = Choice(split, loading, (None, *corruptions(_names(corrupt), severity)))
    with ExitStack() as stack:
        opened = encoders(
            checkpoints, picked, resolve=resolve, stack=stack, cross=cross,
            with_experts=compare is not None or loss_correlation, allow_pickle=allow_pickle,
        )  # fmt: skip
        place, backbone = device_for(device), build(picked.backbone, resolve=resolve)
        folder = Path(heads) if heads else None
        run = _Run(
            suite=picked, encoders=opened, choice=choice, backbone=backbone, device=place, batch_size=batch_size,
            seed=seed, heads=Heads(picked, backbone, place, stack, folder, allow_pickle, notes.append),
            compare=compare is not None, loss_correlation=loss_correlation, progress=progress or _silent, notes=notes,
        )  # fmt: skip
        try:
            run.everything()
        except torch.OutOfMemoryError:
            what = f"the device has too little memory for batches of {run.batch_size}"
            raise NotEnough(what, where="--batch-size", hint="give a smaller one, or --device cpu") from None
    return run.report(time.perf_counter() - started)


def device_for(said: str) -> torch.device:
    """The device that encoders run on; `auto` is a GPU where there is one."""
    return named_device(said, accelerate=True)


def _names(given: str | Sequence[str]) -> Sequence[str]:
    """One name is a list of one."""
    return [given] if isinstance(given, str) else given


def _check(compare: str | None, limit: int | None, batch_size: int, severity: int, seed: int) -> None:
    """Options whose values the types do not check."""
    if compare not in (None, "experts"):
        raise UsageError(f"`{compare}` cannot be compared with", where="--compare", hint="it takes `experts`")
    for flag, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{value} items cannot be taken", where=flag, hint="give 1 or more")
    if not 1 <= severity <= 5:
        raise UsageError(f"there is no severity {severity}", where="--severity", hint="give 1 to 5")
    if seed < 0:
        raise UsageError(f"{seed} is no seed", where="--seed", hint="give 0 or more")


def _silent(done: int, total: int | None, what: str) -> None:
    """No progress is wanted."""


@dataclass
class _Run:
    """One evaluation: what is fixed, and what has been found so far."""

    suite: Suite
    encoders: tuple[Encoder, ...]
    choice: Choice
    backbone: Backbone
    device: torch.device
    batch_size: int
    seed: int
    heads: Heads
    compare: bool
    loss_correlation: bool
    progress: Progress
    notes: list[str]
    rows: list[Row] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    correlations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    done: int = 0
    total: int = 0
    _known: int = 0
    _halved: bool = False

    def everything(self) -> None:
        """Loads the data in portions and runs every encoder over each."""
        self.backbone.module.to(self.device).eval()
        self.warnings += [text for one in self.encoders for text in one.checkpoint.warnings]
        check_fits(self.backbone, [one.checkpoint for one in self.encoders], self.heads.base)
        self.heads.load(self.encoders)
        clock = time.perf_counter()
        for portion in portions(self.suite.tasks, self.choice, self.backbone.prepare, reading=self._reading):
            self.seconds["reading"] += time.perf_counter() - clock
            self._portion(portion)
            clock = time.perf_counter()

    # --- one portion of data ---------------------------------------------------------------------------------------

    def _portion(self, portion: Sequence[Sequence[DataSet]]) -> None:
        self.data += [_described(one, self.choice) for group in portion for one in group]
        self.warnings += [_left_out(one, self.choice) for group in portion for one in group if one.items.skipped]
        ordered = sorted(self.encoders, key=lambda one: one.kind != "expert")  # others are compared with the experts
        work = [(one, list(_for(one, portion))) for one in ordered]
        self._known += sum(len(group[0].items) for _, groups in work for group in groups)
        self.total = (
            self._known * len(self.suite.tasks) * len(self.choice.corrupt) // len(self.data)
        )  # portions to come
        experts: dict[Any, Tensor] = {}
        for encoder, groups in work:
            if groups:
                self._fill(encoder)
            for group in groups:
                try:
                    scored = self._scored(encoder, group, [self.heads.of(encoder, data.task) for data in group])
                except BadNumber as error:
                    raise blamed(error, encoder.checkpoint) from error
                with self._timed("scoring"):
                    for data, (rows, outputs) in zip(group, scored, strict=True):
                        self._judge(encoder, data, rows, outputs, experts)

    def _fill(self, encoder: Encoder) -> None:
        with self._timed("filling"):
            fill(self.backbone, encoder.checkpoint, self.heads.base)

    def _scored(
        self, encoder: Encoder, group: Sequence[DataSet], heads: Sequence[Head]
    ) -> list[tuple[Contributions, Tensor | None]]:
        """Each task's contributions to its metric from one pass of the encoder, and outputs where they are compared.

        Features of dense tasks are not kept: their heads and metrics follow every batch.
        """
        inputs, count = group[0].items.inputs, len(group[0].items)
        step = self.batch_size if any(data.task.kind in DENSE for data in group) else count
        rows: list[list[Contributions]] = [[] for _ in group]
        kept: list[list[Tensor]] = [[] for _ in group]
        for start in range(0, count, step):
            features = self._encode(encoder, {name: whole[start : start + step] for name, whole in inputs.items()})
            for place, (data, head) in enumerate(zip(group, heads, strict=True)):
                where = f"checkpoint `{encoder.row}` on task `{data.task.name}`"
                with torch.inference_mode(), self._timed("scoring"), located(where):
                    outputs = head(features).cpu()
                    labels = data.labels[start : start + step]
                    rows[place].append(contributions(data.task.metric, outputs, labels))
                if self._compared(data.task):
                    kept[place].append(outputs)
        joined = [torch.cat(parts) if parts else None for parts in kept]
        return [(np.concatenate(parts), outputs) for parts, outputs in zip(rows, joined, strict=True)]

    def _compared(self, task: Task) -> bool:
        return (self.compare or self.loss_correlation) and task.kind == "classification"

    def _encode(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features; when a GPU's memory runs out, once more with half the batch, which then stays."""
        before = self.done

        def step(count: int) -> None:
            self.done += count
            self.progress(self.done, self.total, encoder.row)

        try:
            with self._timed("encoding"):
                return encode(
                    self.backbone.module, inputs, batch_size=self.batch_size, device=self.device, progress=step
                )
        except torch.OutOfMemoryError:
            if self._halved or self.batch_size < 2:
                raise
        self._halved, self.batch_size, self.done = True, self.batch_size // 2, before
        self.notes.append(f"the device's memory ran out: batches of {self.batch_size} from there on")
        return self._encode(encoder, inputs)

    def _judge(
        self, encoder: Encoder, data: DataSet, rows: Contributions, outputs: Tensor | None, experts: dict[Key, Tensor]
    ) -> None:
        """The row of one checkpoint on one task, and what it is compared with."""
        task, corruption = data.task, data.corruption
        name, severity = (corruption.name, corruption.severity) if corruption else (None, None)
        found, correct = score_of(task.metric, rows, seed=self.seed)
        self.rows.append(
            Row(
                encoder=encoder.row, task=task.name, head=task.name, split=self.choice.split, metric=task.metric,
                score=found, skipped=data.items.skipped, correct=correct, protocol=encoder.protocol,
                corruption=name, severity=severity,
            )
        )  # fmt: skip
        if outputs is None:
            return
        if encoder.own_task == task.name:
            experts[data.key] = outputs
        if encoder.kind == "expert":
            return
        said = {"encoder": encoder.row, "task": task.name, "corruption": name, "severity": severity}
        expert = experts[data.key]
        if self.compare:
            self.comparisons.append(said | discrepancy(outputs, expert, data.labels))
        if self.loss_correlation:
            self.correlations += [said | one for one in correlations(outputs, expert, data.labels, seed=self.seed)]

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[phase] += time.perf_counter() - started

    def _reading(self, what: str) -> None:
        self.progress(self.done, None, f"reading {what}")

    # --- the result ------------------------------------------------------------------------------------------------

    def report(self, seconds: float) -> Report:
        """Everything that was found, in the order of the arguments, the corruptions and the suite's tasks."""
        rows = tuple(normalised(sorted(self.rows, key=lambda row: self._place(vars(row)))))
        self._closing_notes(rows)
        encoding = self.seconds["encoding"]
        timing = {**self.seconds, "total": seconds, "samples": float(self.done)}
        timing["samples_per_second"] = self.done / encoding if encoding else 0.0
        return Report(
            version=__version__, suite=self.suite.name, split=self.choice.split,
            checkpoints=tuple(one.to_dict() for one in self.encoders), data=self._sorted(self.data), rows=rows,
            averages=averages(rows, {one.row: one.group for one in self.encoders}),
            comparisons=self._sorted(self.comparisons), correlations=self._sorted(self.correlations),
            notes=tuple(dict.fromkeys(self.notes)), warnings=tuple(dict.fromkeys(self.warnings)), timing=timing,
        )  # fmt: skip

    def _closing_notes(self, rows: Sequence[Row]) -> None:
        """What a reader of the averages and comparisons should know."""
        if all(one.kind != "expert" for one in self.encoders):
            self.notes.append("scores are not normalised: add `experts` to the checkpoints")
        useless = [
            f"{row.task} ({row.corruption})" if row.corruption else row.task
            for row in rows
            if row.encoder == EXPERT + row.task and row.normalised is None
        ]
        if useless:
            self.notes.append(f"not normalised, as the expert scores 0 or less: {', '.join(useless)}")
        if len({row.score.lower_is_better for row in rows}) > 1:
            self.notes.append("the plain average mixes scores with errors: compare normalised ones")
        others = [task.name for task in self.suite.tasks if task.kind != "classification"]
        if others and (self.compare or self.loss_correlation):
            self.notes.append(f"compared on tasks of classification only: not on {', '.join(others)}")

    def _sorted(self, found: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        return tuple(sorted(found, key=self._place))

    def _place(self, one: Mapping[str, Any]) -> tuple[int, int, int]:
        """Where a row, a comparison or a data set belongs, however the data came in."""
        encoders = [encoder.row for encoder in self.encoders]
        corruptions = [kind and kind.name for kind in self.choice.corrupt]
        tasks = [task.name for task in self.suite.tasks]
        encoder = encoders.index(one["encoder"]) if "encoder" in one else 0
        return encoder, corruptions.index(one["corruption"]), tasks.index(one["task"])


def _for(encoder: Encoder, portion: Sequence[Sequence[DataSet]]) -> Iterator[list[DataSet]]:
    """The data sets that an encoder is scored on."""
    for group in portion:
        own = [one for one in group if encoder.scored_on(one.task)]
        if own:
            yield own


def _described(one: DataSet, choice: Choice) -> dict[str, Any]:
    """What was evaluated on: enough to know it again."""
    return {
        "task": one.task.name,
        "split": choice.split,
        "n": len(one.items),
        "fingerprint": one.labelled.fingerprint,
        "classes": len(one.task.classes) if one.task.kind == "classification" else None,
        "skipped": one.items.skipped,
        "corruption": one.corruption.name if one.corruption else None,
        "severity": one.corruption.severity if one.corruption else None,
    }


def _left_out(one: DataSet, choice: Choice) -> str:
    count = one.items.skipped
    what = "1 item cannot be decoded and is" if count == 1 else f"{count} items cannot be decoded and are"
    return f"split `{choice.split}` of task `{one.task.name}`: {what} left out"
