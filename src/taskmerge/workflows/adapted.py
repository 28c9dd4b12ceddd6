"""`adapt`: learns on unlabelled items, has the merge engine write the model, and scores that very file."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.adaptation.build import Workers, built, workers
from taskmerge.adaptation.components import Composed
from taskmerge.adaptation.folder import Folder, open_folder, write_parts
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.opening import (
    Experts,
    Opened,
    Place,
    Teaching,
    files_digest,
    open_tasks,
    spots_of,
    taught,
)  # fmt: skip
from taskmerge.adaptation.refit import refit
from taskmerge.adaptation.rows import Plan, composed
from taskmerge.adaptation.running import Following, Heard, Running
from taskmerge.adaptation.sides import training_places
from taskmerge.adaptation.teachers import Teacher, TeacherCache
from taskmerge.checkpoint.adapted import MODEL, Part
from taskmerge.checkpoint.checkpoint import open_plain
from taskmerge.checkpoint.hub import resolve
from taskmerge.evaluation.workload import named_tasks
from taskmerge.experts.rows import Rows, even
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.options import Arguments
from taskmerge.methods.adaptive import Adapter, Heads, Relaxed
from taskmerge.methods.adaptive_registry import RECOMMENDED
from taskmerge.methods.composed import Learned
from taskmerge.models.backbones import build
from taskmerge.numerics.device import named_device
from taskmerge.numerics.solved_heads import Solved
from taskmerge.processes import ALONE, Group, group
from taskmerge.specs.adapt import short_of_flips
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import find_suite, load_suite
from taskmerge.types import Note, Space, unheard
from taskmerge.workflows.adapt_labels import labels_as_teachers, watcher
from taskmerge.workflows.adapt_report import AdaptReceipt, Done, receipt_of
from taskmerge.workflows.adapt_request import AdaptRequest, Encoder, adapt_requested, encoder_of

SPACES: Mapping[str, Space] = {"base": "delta", "mean": "centred", "init": "weight"}
AT_ONCE = 2 * 10**9
"""Bytes that tensors may hold at once while they are turned into components."""


@dataclass(frozen=True, kw_only=True)
class AdaptRunning:
    """Options that don't shape the result: where it goes, what it may cost, who hears of it.

    `cache` is a folder that keeps decoded items and experts' outputs between runs. `scores` has the written model
    evaluated on the suite's labelled split at the end. `group` are processes that share the work already.
    """

    output: Path | None = None
    overwrite: bool = False
    resume: bool = False
    keep_state: bool = False
    device: str = "auto"
    threads: int | None = None
    cache: Path | None = None
    scores: bool = True
    split: str = "test"
    heard: Heard | None = None
    doing: Callable[[str], None] = unheard
    note: Note = unheard
    group: Group = ALONE

    def within(self, together: Group) -> "AdaptRunning":
        """The same in one of several processes, of which the first one alone is heard."""
        if together.is_first:
            return replace(self, group=together)
        return replace(self, group=together, heard=None, doing=unheard, note=unheard)


def adapt(
    inputs: Arguments = (),
    *,
    suite: Suite | str | Path | None = None,
    method: str = RECOMMENDED,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    keep_state: bool = False,
    device: str = "auto",
    threads: int | None = None,
    cache: str | Path | None = None,
    scores: bool = True,
    split: str = "test",
    **options: Any,
) -> AdaptReceipt:
    """Adapts a merge of a suite's experts on unlabelled items, and writes a folder (`adapted-METHOD/`).

    Every option of the command is a keyword of the same name (`iterations=100`, `origin="mean"`, `with_="tint"`), and
    so is every option of the method (`rank=0.16`). No label is read, except to score the result on `split` at the end.
    Raises a TaskmergeError.
    """
    loaded = suite if isinstance(suite, Suite) else load_suite(find_suite(Path(suite) if suite else None)[0])
    asked = adapt_requested(loaded, inputs, {"method": method, **options})
    running = AdaptRunning(
        output=Path(output) if output else None, overwrite=overwrite, resume=resume, keep_state=keep_state,
        device=device, threads=threads, cache=Path(cache) if cache else None, scores=scores, split=split,
    )  # fmt: skip
    return adapt_asked(asked, running)


def adapt_asked(asked: AdaptRequest, running: AdaptRunning) -> AdaptReceipt:
    """Carries an adaptation out, in all processes that torchrun has started: every one gets the receipt."""
    with group(named_device(running.device, accelerate=True), within=running.group) as together:
        return _adapted(asked, running.within(together))


def _adapted(asked: AdaptRequest, running: AdaptRunning) -> AdaptReceipt:
    """Opens, learns and writes, in one of the processes."""
    started = time.perf_counter()
    place = running.output or Path(f"adapted-{asked.spec.method.replace('_', '-')}")
    suite = replace(asked.suite, tasks=named_tasks(asked.suite, asked.spec.tasks or None))
    asked = replace(asked, suite=suite)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        running.note(text)

    by_first = running.group.by_first
    folder = by_first(lambda: open_folder(place, overwrite=running.overwrite, resume=running.resume))
    with ExitStack() as stack:
        encoder = encoder_of(asked, folder.path / MODEL)
        stack.callback(encoder.experts.inputs.close)
        for text in (*encoder.experts.inputs.notes, *encoder.experts.plan.notes):
            note(text)
        device = running.group.placed(named_device(running.device, accelerate=True))
        crew = stack.enter_context(workers(device, running.threads, running.group))
        learning = _Learning(asked, running, encoder, folder, crew, device, note)
        run, solved, learned = learning.carry_out(stack)
        encoder.experts.inputs.check_unchanged()
        done = Done(asked, encoder, run, solved, learned, learning.parts, learning.about, tuple(notes), started)
    return by_first(lambda: receipt_of(done, folder, running))


@dataclass
class _Learning:
    """One adaptation from headers to written parts."""

    asked: AdaptRequest
    running: AdaptRunning
    encoder: Encoder
    folder: Folder
    crew: Workers
    device: torch.device
    note: Note
    parts: list[Part] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)

    def carry_out(self, stack: ExitStack) -> tuple[Running, Mapping[str, Solved], Learned | None]:
        """Learns, and writes what was learnt and the model."""
        spec, doing = self.asked.spec, self.running.doing
        place = self._place()
        doing("reading items")
        opened = open_tasks(self.asked.suite, self.asked.parts, spec, place, stack, self.running.cache)
        experts = self._experts(place)
        doing("reading experts")
        pieces = self._composed(experts) if self.asked.parts.origin != "init" else ()
        self.about = self._about(experts, opened)
        teachers = self._teachers(opened, experts, place)
        init = None
        if self.asked.parts.origin == "init":
            doing("merging")
            self.running.group.by_first(lambda: self._write_model(None))
            init = stack.enter_context(open_plain(self.folder.path / MODEL))
        doing("learning")
        start = _start_values(self.encoder, pieces)
        adaptation = built(
            opened, teachers, pieces, self.asked.parts, spec, place, self.crew,
            experts=len(self.encoder.experts.inputs.experts), init=init, start=start,
        )  # fmt: skip
        if warning := short_of_flips(spec, self.asked.parts, adaptation.total):
            self.note(warning)
        run = self._run(adaptation, opened, place)
        run.carry_out(resume=self.folder.resumes)
        solved = refit(adaptation.sides, opened.tasks, place, spec) if spec.refit_heads else {}
        run.conclude()
        learned = self._learned(adaptation, experts)
        self.running.group.by_first(lambda: self._write(adaptation, experts, learned))
        return run, solved, learned

    def _place(self) -> Place:
        backbone = build(self.asked.suite.backbone, resolve=resolve)
        if self.asked.merging.get("compute_dtype") == "float64":
            backbone.module.double()
        backbone.module.to(self.device)
        return Place(backbone, self.device, self.crew.count, self.note, self.running.group)

    def _experts(self, place: Place) -> Experts:
        prepared = self.encoder.experts
        inputs = prepared.inputs
        dtype = torch.float64 if prepared.spec.compute_dtype == "float64" else torch.float32
        space = SPACES[self.asked.parts.origin]
        rows = Rows(inputs.base, inputs.experts, space, even(inputs.experts), dtype, self.device)
        units = [job.unit for job in prepared.plan.jobs if job.action == "merge"]
        digests = {source.task: files_digest(source) for source in inputs.experts}
        base = files_digest(inputs.base) if inputs.base is not None else ""
        return Experts(rows, units, spots_of(place.backbone, units), digests, base)

    def _composed(self, experts: Experts) -> tuple[Composed, ...]:
        """The components of every merged tensor, read once."""
        prepared, parts = self.encoder.experts, self.asked.parts
        factored = {job.name for job in prepared.plan.jobs if job.factored}
        plan = Plan(experts.units, factored, parts.components, parts.of(Relaxed) is not None, prepared.spec.svd)
        return composed(plan, experts.rows, experts.spots, workers=self.crew.count, in_flight=AT_ONCE)

    def _teachers(self, opened: Opened, experts: Experts, place: Place) -> dict[str, Teacher]:
        """What every expert says of its task's items."""
        features = self.asked.parts.on == "features" or self.asked.parts.of(Adapter) is not None
        teaching = Teaching(
            self.asked.spec.teacher_scale, features,
            TeacherCache(self.running.cache, self.note, self.running.group), repr(self.asked.suite.backbone),
        )  # fmt: skip
        if self.asked.parts.supervised:
            return labels_as_teachers(opened, spec=self.asked.spec, place=place, cache=self.running.cache)
        teachers = {}
        for task in opened.tasks:
            self.running.doing(f"asking the expert of {task.task.name}")
            teachers[task.task.name] = taught(task, experts, opened, place, teaching)
        return teachers

    def _about(self, experts: Experts, opened: Opened) -> dict[str, object]:
        """What the run belongs to: resumed only with the same."""
        return {
            "recipe": self.asked.spec.recipe(),
            "merge": self.encoder.request.spec.recipe({}),
            "experts": dict(experts.digests), "base": experts.base_digest,
            "items": {task.task.name: task.items.fingerprint for task in opened.tasks},
            "torch": torch.__version__, "device": self.device.type, "processes": self.running.group.size,
        }  # fmt: skip

    def _run(self, adaptation: Adaptation, opened: Opened, place: Place) -> Running:
        spec = self.asked.spec
        following = None
        if spec.stop is not None:
            held = {task.task.name: training_places(task, spec)[1] for task in opened.tasks}
            following = Following(spec.every or max(1, adaptation.total // 20), held)
        run = Running(adaptation, self.folder.path, self.about, following, heard=self.running.heard)
        if spec.watch is not None:
            run.watch = watcher(adaptation, self.running.split, place, self.running.cache)
            run.watch_every = spec.watch
        return run

    def _learned(self, adaptation: Adaptation, experts: Experts) -> Learned | None:
        """What shapes the merged weights, if anything does."""
        if self.asked.parts.origin == "init":
            return None
        return adaptation.on_weights.learned(tuple(source.task for source in experts.rows.experts))

    def _write(self, adaptation: Adaptation, experts: Experts, learned: Learned | None) -> None:
        """Writes what was learnt and, from that, the model."""
        parts = self.asked.parts
        names = {module: own for own, module in experts.spots.items()}
        heads = parts.of(Heads) is not None or self.asked.spec.refit_heads
        self.parts = write_parts(self.folder.path, adaptation.sides, learned, names, heads=heads)
        if learned is not None:
            self._write_model(learned)

    def _write_model(self, learned: Learned | None) -> None:
        merge_requested(self.encoder.final(learned, self.folder.path / MODEL))


def _start_values(encoder: Encoder, pieces: Sequence[Composed]) -> Tensor | None:
    """Coefficients [L, T] to start from, if a file of them was named."""
    if encoder.start is None or not pieces:
        return None
    return torch.stack([encoder.start.of(one.name).coefficients for one in pieces])
