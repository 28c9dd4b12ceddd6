"""`merge --from`: an adapted folder's model again, without data; or one task's plain checkpoint of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from taskmerge.checkpoint.adapted import (
    AGAIN,
    MANIFEST,
    MODEL,
    PLACES,
    AdaptedFolder,
    Part,
    read_adapted,
    write_manifest,
)
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.errors import BadFile, UsageError, unknown_name
from taskmerge.experts.arguments import Arguments, named_files
from taskmerge.merging.kernels import bind_points
from taskmerge.merging.merge import merge_requested
from taskmerge.merging.outputs import is_folder, output_paths
from taskmerge.merging.prepare import prepare
from taskmerge.merging.record import MergeReceipt, OutputRecord
from taskmerge.merging.request import Request, requested
from taskmerge.specs.keywords import Location, Size, given, path
from taskmerge.specs.recipe_file import recipe_text
from taskmerge.workflows.adapted_copy import (
    check_replaceable,
    copy_head,
    copy_parts,
    explained,
    hidden_folder,
    new_folder,
    put_block,
    task_file,
)

Merge = Callable[[Request], MergeReceipt]
RUNNING = frozenset({"output", "overwrite", "device", "threads", "max_memory", "progress", "allow_pickle"})
"""Keywords of `merge` that go with a folder: what shapes the result, the folder itself says."""
OTHERS = ("recipe", "suite", "choose")
REBUILDING = "making an adapted model again"
NAMED = {"digests": "no_digest", "weights": "weight"}  # keywords whose options are called otherwise
BESIDE: Mapping[Part, str] = {"adapters": "an adapter of its features", "tasks": "a part of its own"}


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """An adapted folder that is to be rebuilt: the merge that makes its shared encoder, and of which task (None: all).

    `request` writes to the final output; `warnings` are about the folder itself.
    """

    adapted: AdaptedFolder
    request: Request
    task: str | None
    warnings: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The file or folder that it is written to."""
        spec, given = self.request.spec, self.request.running.output
        return output_paths(spec, given, bind_points(spec), self.request.inputs, self.request.opening.base)[0]

    @property
    def block(self) -> Path | None:
        """The task's own part of the encoder."""
        return None if self.task is None else task_file(self.adapted, "blocks", self.task)


def rebuild(
    folder: str | Path, inputs: Arguments = (), *, task: str | None = None, output: Location = None,
    overwrite: bool | None = None, device: str | torch.device | None = None, threads: int | None = None,
    max_memory: Size = None, allow_pickle: bool | None = None, progress: Callable[[int, int], None] | None = None,
) -> MergeReceipt:  # fmt: skip
    """Makes the model of a folder that `adapt` wrote again, byte for byte, from its experts and what was learnt.

    Experts and base are found by content among `inputs`, where the folder's recipe says, in the folder, beside it, and
    in the working directory. An `output` that is a file gets the model, one that is a folder all other parts too. With
    `task` the model has that task's own block in place, and a folder gets that task's head alone. The other keywords
    are those of `merge` that do not shape the result; `device` is that which it was made on. Raises `TaskmergeError`.
    """
    said = given(locals(), ("folder", "inputs", "task"))
    return carry_out_rebuilding(rebuilding(path(folder, "--from"), inputs, said, task=task))


# --- what is to be done ----------------------------------------------------------------------------------------


def check_alone(said: Mapping[str, Any]) -> None:
    """Refuses what names another source of what is merged beside --from."""
    for name in OTHERS:
        if said.get(name) is not None:
            raise UsageError(f"`--{name}` does not go with --from", where=f"--{name}", hint="give one of the two")


def rebuilding(folder: Path, inputs: Arguments, keywords: Mapping[str, Any], *, task: str | None = None) -> Rebuilding:
    """Finds the experts of a folder and reads what was learnt; writes nothing."""
    for name in keywords:
        if name not in RUNNING:
            flag = f"--{NAMED.get(name, name).replace('_', '-')}"
            hint = f"change a recipe with `--recipe {folder / MODEL} {flag} …`"
            raise UsageError(f"`{flag}` does not go with --from: the folder says it", where=flag, hint=hint)
    adapted = _whole(folder)
    recipe, device, warnings = _recipe(adapted)
    given = {name: value for name, value in keywords.items() if value is not None}
    named_files(inputs, REBUILDING)
    request = requested(inputs, {"device": device, **given}, recipe=recipe)
    if task is None:
        return Rebuilding(adapted, request, task, tuple(warnings))
    tasks = [name for name, _ in named_files(request.inputs, REBUILDING)]
    if task not in tasks:
        raise unknown_name("task", task, tasks, where="--task")
    for part, words in BESIDE.items():
        file = task_file(adapted, part, task)
        if file is not None:
            warnings.append(f"`{task}` has {words} ({file}), which no checkpoint holds: this one is not all of it")
    return Rebuilding(adapted, request, task, tuple(warnings))


def _whole(folder: Path) -> AdaptedFolder:
    """The folder, if the run that wrote it has come to its end."""
    if not os.path.isdir(folder):
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise BadFile(what, where=str(folder), hint="name the folder that `taskmerge adapt` wrote")
    if not (folder / MANIFEST).exists():
        what = f"has no {MANIFEST}: the run that was to write it has not come to its end"
        raise BadFile(what, where=str(folder), hint=f"continue it: `taskmerge adapt … -o {folder} --resume`")
    return read_adapted(folder)


def _recipe(adapted: AdaptedFolder) -> tuple[Path, str, list[str]]:
    """What says how the model was made: itself, or the recipe where it is gone; on what device; and warnings."""
    if not adapted.model.exists():
        recipe = adapted.place("recipe")
        if recipe is None:
            raise BadFile(f"has neither {MODEL} nor {PLACES['recipe']}", where=str(adapted.path), hint=AGAIN)
        told = f"{adapted.model} is not there: the experts are those that {recipe} names, whatever they hold now"
        return recipe, "auto", [told]
    with open_checkpoint(adapted.model) as model:
        device = (provenance_of(model) or {}).get("device")
    if device != "cuda":
        return adapted.model, "cpu", []
    if torch.cuda.is_available():
        return adapted.model, "cuda", []
    return adapted.model, "cpu", [f"{adapted.model} was made on a GPU, and there is none here: last bits may differ"]


# --- doing it --------------------------------------------------------------------------------------------------


def carry_out_rebuilding(what: Rebuilding, merge: Merge = merge_requested) -> MergeReceipt:
    """Merges the shared encoder by `merge`, and writes the output whole or not at all."""
    if is_folder(what.output):
        return _as_folder(what, merge)
    if what.block is None:
        return _receipt(merge(what.request), what.warnings)
    return _with_block(what, what.block, merge)


def _with_block(what: Rebuilding, block: Path, merge: Merge) -> MergeReceipt:
    """One task's checkpoint as a file."""
    request, final = what.request, what.output
    prepare(request.inputs, request.spec, request.opening, request.running).inputs.close()  # refuses early
    with hidden_folder(final) as work:
        receipt = merge(_into(request, work / MODEL))
        overwrite = request.running.overwrite
        record = put_block(work / MODEL, block, str(what.task), final, overwrite=overwrite)
    return _receipt(receipt, what.warnings, final, [final], record)


def _as_folder(what: Rebuilding, merge: Merge) -> MergeReceipt:
    """The whole folder, or one task's checkpoint in a folder of its own, with its head."""
    final, adapted, record = Path(os.path.realpath(what.output)), what.adapted, None
    check_replaceable(final, overwrite=what.request.running.overwrite)
    with new_folder(final) as work:
        if what.task is None:
            receipt = merge(_into(what.request, work / MODEL))
            with explained(final):
                copy_parts(adapted, work)
                if "recipe" in adapted.manifest.parts:
                    (work / PLACES["recipe"]).write_text(_recipe_of(what.request, final), encoding="utf-8")
                write_manifest(work, adapted.manifest)
        else:
            receipt = merge(_into(what.request, work))
            with explained(final):
                copy_head(adapted, what.task, work)
            if what.block is not None:
                record = put_block(work / MODEL, what.block, what.task, work / MODEL, overwrite=True)
    files = sorted(file for file in what.output.rglob("*") if file.is_file())
    return _receipt(receipt, what.warnings, what.output, files, record)


def _into(request: Request, output: Path) -> Request:
    return replace(request, running=replace(request.running, output=output, overwrite=False))


def _recipe_of(request: Request, folder: Path) -> str:
    """The recipe that will lie in `folder`: what was merged, from where it was found."""
    recipe = request.spec.recipe(bind_points(request.spec)[0].point)
    base = None if request.opening.base is None else Path(str(request.opening.base))
    return recipe_text(recipe, dict(named_files(request.inputs, REBUILDING)), base, folder)


def _receipt(
    receipt: MergeReceipt, warnings: tuple[str, ...], final: Path | None = None, files: list[Path] | None = None,
    record: Mapping[str, object] | None = None,
) -> MergeReceipt:  # fmt: skip
    """The merge's receipt, of what was written in the end."""
    receipt = replace(receipt, warnings=(*receipt.warnings, *warnings), provenance=record or receipt.provenance)
    if final is None or files is None:
        return receipt
    size = sum(file.stat().st_size for file in files)
    output = OutputRecord(str(final), tuple(map(str, files)), size, receipt.outputs[0].options)
    return replace(receipt, outputs=(output,))
