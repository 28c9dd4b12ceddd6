"""An adaptation: learns on unlabelled items, has the merge engine write the model, and scores that very file."""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    expert_tensors,
    files_digest,
    open_tasks,
    spots_of,
    taught,
)  # fmt: skip
from taskmerge.adaptation.refit import refit
from taskmerge.adaptation.rows import Plan, composed
from taskmerge.adaptation.running import Following, Heard, Interruptible, Running, at_once
from taskmerge.adaptation.sides import BLOCK, block_names, training_places
from taskmerge.adaptation.teachers import Teacher, TeacherCache
from taskmerge.checkpoint.adapted import MODEL, Part
from taskmerge.checkpoint.checkpoint import open_plain
from taskmerge.checkpoint.hub import resolve
from taskmerge.errors import Mismatch, listed
from taskmerge.experts.rows import Rows, even
from taskmerge.merging.merge import merge_requested
from taskmerge.methods.adaptive import Adapter, Block, Heads, Relaxed
from taskmerge.methods.composed import Learned
from taskmerge.models.backbones import build
from taskmerge.models.fill import completed
from taskmerge.numerics.device import named_device
from taskmerge.numerics.solved_heads import Solved
from taskmerge.processes import ALONE, Group, group
from taskmerge.specs.adapt import short_of_flips
from taskmerge.specs.suite import Suite
from taskmerge.stops import unfinished
from taskmerge.types import Note, Space, unheard
from taskmerge.workflows.adapt_init import begun, own_blocks
from taskmerge.workflows.adapt_labels import labels_as_teachers, watcher
from taskmerge.workflows.adapt_report import AdaptReceipt, Done, receipt_of
from taskmerge.workflows.adapt_request import AdaptRequest, Encoder, encoder_of, heard

SPACES: Mapping[str, Space] = {"base": "delta", "mean": "centred", "init": "weight"}
AT_ONCE = 2 * 10**9
"""Bytes that tensors may hold at once while they are turned into components."""
Planned = Callable[[AdaptRequest, str], None]
"""Hears of a request when the headers of what is merged are known, and on what kind of device it runs."""


def _unheard(asked: AdaptRequest, device: str) -> None:
    """The `Planned` of those to whom nobody listens."""


@dataclass(frozen=True, kw_only=True)
class AdaptRunning:
    """Options that don't shape the result: where it goes, what it may cost, who hears of it.

    `cache` is a folder that keeps decoded items and experts' outputs between runs. `scores` has the written model
    evaluated on the suite's labelled split at the end. `planned` hears of the plan before anything is read, `doing` of
    what goes on, `heard` of every update; `interruptible` says how updates are stopped. `group` are processes that
    share the work already.
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
    planned: Planned = _unheard
    heard: Heard | None = None
    interruptible: Interruptible = at_once
    doing: Callable[[str], None] = unheard
    note: Note = unheard
    group: Group = ALONE

    def within(self, together: Group) -> "AdaptRunning":
        """The same in one of several processes, of which the first one alone is heard."""
        if together.is_first:
            return replace(self, group=together)
        return replace(self, group=together, heard=None, planned=_unheard, doing=unheard, note=unheard)


def place_of(asked: AdaptRequest, running: AdaptRunning) -> Path:
    """The folder that an adaptation writes."""
    return running.output or Path(f"adapted-{asked.spec.method.replace('_', '-')}")


def adapt_asked(asked: AdaptRequest, running: AdaptRunning) -> AdaptReceipt:
    """Carries an adaptation out, in all processes that torchrun has started: every one gets the receipt."""
    with group(named_device(running.device, accelerate=True), within=running.group) as together:
        return _adapted(asked, running.within(together))


def _adapted(asked: AdaptRequest, running: AdaptRunning) -> AdaptReceipt:
    """Opens, learns and writes, in one of the processes. What stops it before anything was learnt leaves no folder."""
    started = time.perf_counter()
    by_first, place = running.group.by_first, place_of(asked, running)
    with ExitStack() as claim:
        options = {"overwrite": running.overwrite, "resume": running.resume}
        folder = by_first(lambda: claim.enter_context(open_folder(place, **options)))
        try:
            return _within(folder, asked, running, started)
        except BaseException:
            if running.group.is_first:
                folder.abandon()
            raise


def _within(folder: Folder, asked: AdaptRequest, running: AdaptRunning, started: float) -> AdaptReceipt:
    """The same, in a folder that is its alone."""
    with unfinished(), ExitStack() as stack:
        learning = begin(asked, running, folder, stack)
        run, solved, learned = learning.carry_out(stack)
        learning.encoder.experts.inputs.check_unchanged()
        notes = tuple(learning.notes)
        done = Done(
            learning.asked, learning.encoder, run, solved, learned, learning.parts, learning.about, notes, started
        )
    return running.group.by_first(lambda: receipt_of(done, folder, running))


def begin(asked: AdaptRequest, running: AdaptRunning, folder: Folder, stack: ExitStack) -> "Learning":
    """Opens the headers of everything that is merged, and tells their notes; `stack` closes them."""
    encoder = encoder_of(asked, folder.path / MODEL)
    stack.callback(encoder.experts.inputs.close)
    device = running.group.placed(named_device(running.device, accelerate=True))
    crew = stack.enter_context(workers(device, running.threads, running.group))
    learning = Learning(heard(asked, encoder), running, encoder, folder, crew, device)
    running.planned(learning.asked, device.type)
    started = encoder.start.words()
    for text in (*encoder.experts.inputs.notes, *encoder.experts.plan.notes, *([started] if started else [])):
        learning.note(text)
    return learning


@dataclass(frozen=True)
class Begun:
    """An adaptation before its first update: what it works with, and where."""

    adaptation: Adaptation
    opened: Opened
    experts: Experts
    place: Place


@dataclass
class Learning:
    """One adaptation from headers to written parts; `notes` are those that were told."""

    asked: AdaptRequest
    running: AdaptRunning
    encoder: Encoder
    folder: Folder
    crew: Workers
    device: torch.device
    parts: list[Part] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Tells a note, and keeps it for the report."""
        self.notes.append(text)
        self.running.note(text)

    def carry_out(self, stack: ExitStack) -> tuple[Running, Mapping[str, Solved], Learned | None]:
        """Learns, and writes what was learnt and the model."""
        begun = self.prepared(stack)
        adaptation, opened = begun.adaptation, begun.opened
        if warning := short_of_flips(self.asked.spec, self.asked.parts, adaptation.total):
            self.note(warning)
        run = self._run(adaptation, opened, begun.place)
        run.carry_out(resume=self.folder.resumes)
        spec = self.asked.spec
        solved = refit(adaptation.sides, opened.tasks, begun.place, spec) if self.asked.parts.refit else {}
        run.conclude()
        learned = self._learned(adaptation, begun.experts)
        self.running.group.by_first(lambda: self._write(adaptation, begun.experts, learned))
        return run, solved, learned

    def prepared(self, stack: ExitStack, cut: Callable[[Opened], Opened] = lambda opened: opened) -> Begun:
        """Everything that comes before the first update; `cut` may leave fewer items than there are."""
        spec, parts, doing = self.asked.spec, self.asked.parts, self.running.doing
        place = self._place()
        self._check_whole(place, stack)
        doing("reading items")
        opened = cut(open_tasks(self.asked.suite, parts, spec, place, stack, self.running.cache))
        opened = begun(opened, self.encoder.start, place)
        experts = self._experts(place)
        doing("reading experts")
        pieces = self._composed(experts) if parts.origin != "init" else ()
        self.about = self._about(experts, opened)
        teachers = self._teachers(opened, experts, place)
        init = None
        if parts.origin == "init":
            doing("merging")
            self.running.group.by_first(lambda: self._write_model(None))
            init = stack.enter_context(open_plain(self.folder.path / MODEL))
        doing("learning")
        adaptation = built(
            opened, experts, teachers, pieces, parts, spec, place, self.crew,
            init=init, start=self.encoder.start.learned,
            blocks=self._blocks(experts, place), names=self.encoder.names(),
        )  # fmt: skip
        if block := [name.removeprefix(BLOCK) for name in adaptation.sides[0].own if name.startswith(BLOCK)]:
            self.note(f"--layer: {len(block)} tensors become every task's own, {listed(block, 2)}")
        return Begun(adaptation, opened, experts, place)

    def _check_whole(self, place: Place, stack: ExitStack) -> None:
        """Raises Mismatch where the model would lack tensors without which `eval` cannot use it."""
        names, suite = self.encoder.names(), self.asked.suite
        base = None if suite.base is None else stack.enter_context(open_plain(resolve(suite.base)))
        _, lacking = ([], []) if names is None else completed(place.backbone, names, base)
        if lacking:
            said = [flag for flag in ("include", "exclude") if self.asked.merging.get(flag)]
            flags = " and ".join(f"--{flag}" for flag in said)
            hint = f"leave {flags} out: the encoder needs all of its tensors" if said else "are the experts whole?"
            what = f"the model would lack {len(lacking)} of the encoder's tensors: {listed(lacking, 3)}"
            raise Mismatch(what, where=flags or suite.where, hint=hint)

    def _place(self) -> Place:
        backbone = build(self.asked.suite.backbone, resolve=resolve, renamings=self.asked.merging.get("map", ()))
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
        kept = [
            (source, job.unit)
            for job in prepared.plan.jobs
            if job.action == "keep" and (source := job.holder(inputs.base, inputs.experts)) is not None
        ]
        digests = {source.task: files_digest(source) for source in inputs.experts}
        base = files_digest(inputs.base) if inputs.base is not None else ""
        spots = spots_of(place.backbone, [*units, *(unit for _, unit in kept)])
        return Experts(rows, units, spots, digests, base, kept)

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
            TeacherCache(self.running.cache, self.note, self.running.group), _backbone_key(self.asked.suite),
        )  # fmt: skip
        if self.asked.parts.supervised:
            return labels_as_teachers(opened, spec=self.asked.spec, place=place, cache=self.running.cache)
        teachers = {}
        for task in opened.tasks:
            self.running.doing(f"asking the expert of {task.task.name}")
            teachers[task.task.name] = taught(task, experts, opened, place, teaching)
        return teachers

    def _blocks(self, experts: Experts, place: Place) -> dict[str, dict[str, Tensor]]:
        """What own blocks start from where that is not the merged weights: an earlier run's, or the experts' own."""
        block = self.asked.parts.of(Block)
        if not isinstance(block, Block):
            return {}
        names, tasks = block_names(place.module, block.layer), [task.name for task in self.asked.suite.tasks]
        found = own_blocks(self.encoder.start, tasks, experts.spots, names)
        if block.start == "expert":
            rest = [task for task in tasks if task not in found]
            found |= {task: expert_tensors(experts, task, names) for task in rest}
        return {task: {name: value.to(place.device) for name, value in own.items()} for task, own in found.items()}

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
            following = Following(spec.every or usual_every(adaptation.total), held)
        run = Running(adaptation, self.folder.path, self.about, following, heard=self.running.heard,
                      interruptible=self.running.interruptible)  # fmt: skip
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
        names = {module: own for own, module in experts.spots.items()}
        self.parts = write_parts(self.folder.path, adaptation.sides, learned, names, heads=self._has_heads())
        if learned is not None:
            self._write_model(learned)

    def _has_heads(self) -> bool:
        """Whether the folder needs heads: learnt ones, and such as `eval` would not find in the suite's own files."""
        parts, suite = self.asked.parts, self.asked.suite
        given = bool(self.asked.inputs) and any(task.head == "expert" for task in suite.tasks)
        return parts.of(Heads) is not None or parts.refit or "heads" in self.encoder.start.taken or given

    def _write_model(self, learned: Learned | None) -> None:
        merge_requested(self.encoder.final(learned, self.folder.path / MODEL))


def usual_every(updates: int) -> int:
    """Updates between two looks at held-out items where nobody says."""
    return max(1, updates // 20)


def _backbone_key(suite: Suite) -> str:
    """What tells one backbone from another: what the suite says of it, and what its configuration's files hold."""
    model = suite.backbone.model
    path = model if isinstance(model, Path) else None
    files = [] if path is None else sorted(path.glob("*.json")) if path.is_dir() else [path]
    return repr(suite.backbone) + "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
