"""Writing an adapted folder anew: what may be replaced, its parts but for the model, and one task's block in place."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from taskmerge.checkpoint.adapted import AGAIN, MANIFEST, MODEL, OF_TASKS, PLACES, AdaptedFolder, Part
from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import bytes_of, is_float, itemsize
from taskmerge.checkpoint.provenance import metadata, provenance_of, sealed
from taskmerge.checkpoint.publish import publish_folder
from taskmerge.checkpoint.sidecars import travelling
from taskmerge.checkpoint.staging import staging_folder
from taskmerge.checkpoint.writer import Sink, stage
from taskmerge.errors import BadFile, BadOutput, Mismatch, listed

CARD = "README.md"
OTHER = "choose another folder with -o"


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Raises BadOutput where a folder is no place for a new one: it has files, or such as are not replaced."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise BadOutput("is a file, not a folder", where=str(folder), hint=OTHER)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held and not overwrite:
        raise BadOutput("exists already", where=str(folder), hint=f"pass --overwrite to replace it, or {OTHER}")
    ours = {MANIFEST, MODEL, CARD, *PLACES.values(), *(name.split("/")[0] for name in travelling(folder))}
    strange = [name for name in held if name not in ours]
    if strange:
        raise BadOutput(f"holds other files, which would be lost: {listed(strange)}", where=str(folder), hint=OTHER)


@contextmanager
def hidden_folder(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final` that is gone in the end."""
    with ExitStack() as stack:
        with explained(final):
            work = stack.enter_context(staging_folder(final))
        yield work


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to write into, which takes the place of `final` at the end of the block if all goes well."""
    with hidden_folder(final) as work:
        yield work
        with explained(final):
            publish_folder(work, final)


@contextmanager
def explained(final: Path) -> Iterator[None]:
    """The system's complaints about what is written, as BadOutput."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}"
        raise BadOutput(reason, where=str(final), hint=f"check the disk, or {OTHER}") from error


def copy_parts(adapted: AdaptedFolder, work: Path) -> None:
    """Copies every part of a folder, and what travels with its model; its model, recipe and manifest come anew."""
    for part in adapted.manifest.parts:
        place = adapted.path / PLACES[part]
        if part in OF_TASKS:
            (work / place.name).mkdir()
            for file in sorted(file for file in place.iterdir() if file.is_file()):
                shutil.copyfile(file, work / place.name / file.name)
        elif part != "recipe":
            shutil.copyfile(place, work / place.name)
    for name, file in travelling(adapted.path).items():
        (work / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, work / name)


def copy_head(adapted: AdaptedFolder, task: str, work: Path) -> None:
    """Copies the head of one task, if it has its own."""
    head = task_file(adapted, "heads", task)
    if head is not None:
        (work / head.parent.name).mkdir()
        shutil.copyfile(head, work / head.parent.name / head.name)


def task_file(adapted: AdaptedFolder, part: Part, task: str) -> Path | None:
    """A task's own file of a part; None if there is none."""
    place = adapted.place(part)
    return place / name if place is not None and (place / (name := f"{task}.safetensors")).is_file() else None


# --- one task's block ------------------------------------------------------------------------------------------


def put_block(model: Path, block: Path, task: str, output: Path, *, overwrite: bool) -> Mapping[str, object]:
    """Writes `model` with the tensors of `block` in place of its own; gives what the file says of itself.

    Raises BadFile for NaN or infinity in the block, Mismatch for tensors that the model does not have.
    """
    with open_checkpoint(model) as shared, open_checkpoint(block) as own:
        _check_block(shared, own)
        record = sealed({**(provenance_of(shared) or {}), "kind": "task", "task": task, "block": digest_of(own)})
        holders = {name: own if name in own.specs else shared for name in shared.specs}
        specs = [OutputSpec(name, one.specs[name].dtype, one.specs[name].shape) for name, one in holders.items()]
        about = metadata(record)
        with stage(output, specs, overwrite=overwrite, reserve=len(json.dumps(about))) as sink:
            for name, holder in holders.items():
                _copy(holder, name, sink)
            own.check_unchanged()
            sink.commit(about)
    return record


def _check_block(shared: Checkpoint, own: Checkpoint) -> None:
    """Every tensor of a block is one of the model, in its shape, and finite."""
    strange = sorted(own.specs.keys() - shared.specs.keys())
    if strange:
        raise Mismatch(f"holds tensors that the model does not have: {listed(strange)}", where=str(own.path))
    for name, spec in own.specs.items():
        where = f"{own.path}: `{name}`"
        if spec.shape != shared.specs[name].shape:
            what = f"shape {list(spec.shape)}, the model has {list(shared.specs[name].shape)}"
            raise Mismatch(what, where=where)
        if is_float(spec.dtype) and not bool(torch.isfinite(own.tensor(name).float()).all()):
            raise BadFile("the tensor holds NaN or infinity", where=where, hint=AGAIN)


def _copy(holder: Checkpoint, name: str, sink: Sink) -> None:
    """One tensor, byte for byte."""
    done, item = 0, itemsize(holder.specs[name].dtype)
    for piece in holder.pieces(name):
        sink.write(name, bytes_of(piece), done // item)
        done += len(piece)
