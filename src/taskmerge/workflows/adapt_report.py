"""The report of an adaptation: what was learnt on which items, how it went, and what the written model scores."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from taskmerge.adaptation.build import all_cores
from taskmerge.adaptation.folder import Folder
from taskmerge.adaptation.running import Running
from taskmerge.adaptation.trace import warnings
from taskmerge.checkpoint.adapted import MODEL, OF_TASKS, Manifest, Part
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.small_files import write_small
from taskmerge.evaluation.run import evaluate
from taskmerge.evaluation.scores import Report
from taskmerge.experts.arguments import named_files
from taskmerge.methods.composed import Learned
from taskmerge.numerics.arithmetic import arithmetic
from taskmerge.numerics.memory import peak_memory
from taskmerge.numerics.solved_heads import Solved
from taskmerge.specs.recipe_file import recipe_text
from taskmerge.version import __version__
from taskmerge.workflows.adapt_request import ADAPT, AdaptRequest, Encoder
from taskmerge.workflows.adapt_schema import KIND, SCHEMA_VERSION

if TYPE_CHECKING:
    from taskmerge.workflows.adapted import AdaptRunning


@dataclass(frozen=True)
class Done:
    """An adaptation whose parts are written: what was asked, the run, heads that were solved for, what was learnt."""

    asked: AdaptRequest
    encoder: Encoder
    run: Running
    solved: Mapping[str, Solved]
    learned: Learned | None
    parts: Sequence[Part]
    about: Mapping[str, Any]
    notes: tuple[str, ...]
    started: float


@dataclass(frozen=True)
class AdaptReceipt:
    """What an adaptation wrote: the folder, the report (as in report.json), and the scores where labels were there."""

    path: str
    report: Mapping[str, Any]
    scores: Report | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """The receipt as plain values, for --json."""
        return {"path": self.path, **self.report}


def receipt_of(done: Done, folder: Folder, running: "AdaptRunning") -> AdaptReceipt:
    """Scores the written model, writes recipe, report and manifest, and gives the folder its name."""
    spec = done.asked.spec
    manifest = Manifest(
        method=spec.method, needs_task_index=not set(OF_TASKS).isdisjoint(done.parts),
        parts=(*done.parts, "recipe", "report"), protocol=protocol(done),
    )  # fmt: skip
    write_small(folder.path / "recipe.yaml", recipe(done, folder.place))
    found = _scores(done, folder, manifest, running)
    classes = {side.name: side.teacher.outputs.shape[1] for side in done.run.adaptation.sides
               if side.task.kind == "classification"}  # fmt: skip
    told = (*done.encoder.experts.inputs.warnings, *warnings(done.run.records, classes))
    report = document(done, found, told)
    write_small(folder.path / "report.json", json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    folder.finish(manifest, keep_state=running.keep_state)
    return AdaptReceipt(str(folder.place), report, found, done.notes, told, time.perf_counter() - done.started)


def protocol(done: Done) -> str:
    """What the model has seen, in words: split, horizon, labels."""
    run, spec, parts = done.run.adaptation, done.asked.spec, done.asked.parts
    items = sum(len(side.places) for side in run.sides)
    horizon = f"{run.horizon.iterations} iterations ({run.total} updates of {parts.batch_size} items, {parts.updates})"
    if not run.total:
        horizon = "no updates: heads are solved for"
    labels = "with labels" if parts.supervised else "without labels"
    return f"split `{spec.adapt_split}`: {items} items {labels}; {horizon}; seed {spec.seed}"


def recipe(done: Done, place: Path) -> str:
    """The merge that makes the model again, as a recipe whose paths are relative to the folder."""
    with open_checkpoint(done.run.folder / MODEL) as model:
        record: Mapping[str, Any] = provenance_of(model) or {}
    base = done.encoder.experts.inputs.base
    # of a checkpoint of --init that one, else the experts, and others
    given = dict(named_files(done.encoder.request.inputs, ADAPT))
    experts = {task: path for task, path in given.items() if task in done.encoder.experts.plan.tasks} or given
    return recipe_text(record["recipe"], experts, base.files[0] if base and record.get("base") else None, place)


# --- scores ----------------------------------------------------------------------------------------------------


def _scores(done: Done, folder: Folder, manifest: Manifest, running: "AdaptRunning") -> Report | None:
    """The written model on the suite's labelled split; None where nobody asks, or some task has no labels there."""
    suite = done.asked.suite
    labelled = all(running.split in task.splits and task.splits[running.split].y is not None for task in suite.tasks)
    if not running.scores or not labelled:
        return None
    running.doing("evaluating")
    with all_cores(running.group, running.threads):
        return evaluate(
            {"adapted": folder.path}, suite=suite, split=running.split,
            device=running.device, cache=running.cache, manifests={folder.path: manifest},
            map=done.asked.merging.get("map", ()),
        )  # fmt: skip


# --- the document ----------------------------------------------------------------------------------------------


def document(done: Done, found: Report | None, told: Sequence[str]) -> dict[str, Any]:
    """The report as plain values, by the published schema; two runs of the same differ in `timing` alone."""
    run, spec, parts = done.run.adaptation, done.asked.spec, done.asked.parts
    return {
        "report": KIND,
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "suite": done.asked.suite.name,
        "method": spec.method,
        "recipe": spec.recipe(),
        "parts": {
            "origin": parts.origin, "components": _plain(parts.components), "objective": parts.objective,
            "on": parts.on, "filter": parts.filter, "updates": parts.updates, "iterations": run.horizon.iterations,
            "batch_size": parts.batch_size, "learns": {name: _plain(one) for name, one in parts.learns.items()},
            "rates": spec.rates(parts, run.total),
        },
        "protocol": {
            "split": spec.adapt_split, "labels": parts.supervised, "updates": run.total, "seed": spec.seed,
            "words": protocol(done),
        },
        "tasks": [
            {
                "name": side.name, "items": len(side.places), "held_out": len(side.items) - len(side.places),
                "fingerprint": side.items.fingerprint, "objective": side.objective.name,
            }
            for side in run.sides
        ],
        "experts": done.about["experts"],
        "merging": done.asked.shaping(),
        "processes": done.about["processes"],
        "arithmetic": arithmetic(torch.device(str(done.about["device"])), products=True, factors=True),
        "learned": {
            "updates": done.run.records[-1].update, "skipped": run.counts["skipped"], "flips": run.counts["flips"],
            "coefficients": dict(done.run.records[-1].coefficients),
            "kept_components": done.run.records[-1].kept_components,
        },
        "solved_heads": {
            name: {"loss": one.loss, "start": one.start_loss, "iterations": one.iterations, "pull": one.pull}
            for name, one in done.solved.items()
        },
        "stopped": _stopped(done),
        "scores": None if found is None else _scored(found),
        "notes": list(done.notes),
        "warnings": list(told),
        "timing": {
            "seconds": time.perf_counter() - done.started, "peak_memory": peak_memory(),
            "updates": sum(record.seconds for record in done.run.records),
        },
    }  # fmt: skip


def _plain(value: Any) -> dict[str, Any]:
    """A part as its kind and fields."""
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {"kind": type(value).__name__.lower(), **{name: _simple(own) for name, own in fields.items()}}


def _simple(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _stopped(done: Done) -> dict[str, Any] | None:
    """Which update was kept by agreement on held-out items, and what the fixed horizon would have given."""
    chosen = done.run.chosen
    if chosen is None:
        return None
    curve = [(record.update, record.agreement) for record in done.run.records if record.agreement is not None]
    return {
        "update": chosen.update, "agreement": chosen.agreement, "at_horizon": curve[-1][1],
        "final": sum(done.run.final.values()) / len(done.run.final), "tasks": dict(done.run.final),
        "curve": [list(point) for point in curve],
    }  # fmt: skip


def _scored(report: Report) -> dict[str, Any]:
    """The scores of the written model: by task, with intervals, and their average."""
    rows = [
        {"task": row.task, "metric": row.metric, "score": row.score.value, "low": row.score.low, "high": row.score.high,
         "n": row.score.n}
        for row in report.rows
    ]  # fmt: skip
    average = next((own.average for own in report.averages if own.corruption is None), None)
    return {"split": report.split, "rows": rows, "average": average}
