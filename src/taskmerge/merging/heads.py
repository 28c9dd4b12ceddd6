"""Task heads that are not merged: every task's own tensors, byte for byte, in `heads/` beside the output."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.companions import Change
from taskmerge.checkpoint.digest import digest_of
from taskmerge.checkpoint.dtypes import DTYPES, bytes_of, is_float
from taskmerge.checkpoint.provenance import KEY, is_damaged, metadata, provenance_of, sealed
from taskmerge.checkpoint.writer import Sink, stage
from taskmerge.errors import BadFile, Mismatch, TaskmergeError
from taskmerge.experts.sources import Source, finite

FOLDER = "heads"


def heads_folder(output: Path, is_folder: bool) -> Path:
    """Where the heads of an output go: into its folder, or beside its file."""
    return (output if is_folder else output.parent) / FOLDER


def head_files(
    names: Sequence[str], experts: Sequence[Source], folder: Path
) -> Iterator[tuple[Source, Path, list[OutputSpec]]]:
    """`TASK.safetensors` of every expert that has such tensors, and what it will hold."""
    for expert in experts:
        own = [name for name in names if name in expert.specs]
        if not own:
            continue
        if expert.kind != "weight":
            raise Mismatch(
                "only checkpoints have heads of their own",
                where=expert.where,
                hint="`--heads refuse` merges them like any tensor, `--exclude` leaves them out",
            )
        specs = [OutputSpec(name, expert.specs[name].kept, expert.specs[name].shape) for name in own]
        yield expert, folder / f"{expert.task}.safetensors", specs


def stage_heads(
    names: Sequence[str],
    experts: Sequence[Source],
    folder: Path,
    stack: ExitStack,
    *,
    version: str,
    overwrite: bool,
    beside: Path | None = None,
) -> tuple[list[tuple[Sink, dict[str, str]]], list[Path]]:
    """Stages all heads, each sink with the metadata to seal it with; and the files that hold such a head already.

    `beside` is the output's own folder, if they go into that. Raises BadOutput where a file holds something else
    (without `overwrite`), BadFile for NaN in a head.
    """
    staged, same = [], []
    for expert, path, specs in head_files(names, experts, folder):
        if not overwrite and holds(path, expert, specs):
            same.append(path)
            continue
        sink = stack.enter_context(stage(path, specs, overwrite=overwrite, beside=beside, shared=True))
        for spec in specs:
            _copy(expert, spec.name, sink)
        staged.append((sink, metadata(sealed({"kind": "head", "task": expert.task, "version": version}))))
    return staged, same


def holds(path: Path, expert: Source, specs: Sequence[OutputSpec]) -> bool:
    """Whether a file is the head of an expert that an earlier merge has kept: its tensors and nothing else."""
    if not path.is_file():
        return False
    try:
        with open_checkpoint(path) as there:
            described = {name: (spec.dtype, spec.shape) for name, spec in there.specs.items()}
            if described != {spec.name: (spec.dtype, spec.shape) for spec in specs}:
                return False
            names = [spec.name for spec in specs]
            return all(bytes_of(there.tensor(name)) == bytes_of(expert.raw(name, None)) for name in names)
    except TaskmergeError:
        return False


def head_changes(right: Path, folder: Path) -> list[Change]:
    """The heads in a folder that are not those of another, which a merge has just written; what else lies there is not
    looked at."""
    changes = ((file.name, _change(file, folder / file.name)) for file in sorted(right.glob("*")))
    return [Change(f"{FOLDER}/{name}", what) for name, what in changes if what]


def _change(right: Path, path: Path) -> str | None:
    """What is wrong with a head; one without a record, which a merge has found there, may be right."""
    if not os.path.lexists(path):
        return "is not there"
    try:
        with open_checkpoint(right) as fresh, open_checkpoint(path) as there:
            if is_damaged(there) or not _told_alike(fresh, there):
                return "its record was changed"
            return "holds other tensors than its expert" if digest_of(fresh) != digest_of(there) else None
    except TaskmergeError as error:
        return error.what


def _told_alike(fresh: Checkpoint, there: Checkpoint) -> bool:
    """Whether two heads say the same of themselves, but for the version that wrote them."""
    if {key: said for key, said in there.metadata.items() if key != KEY} not in ({}, {"format": "pt"}):
        return False
    record = provenance_of(there)
    return record is None or {**record, "version": ""} == {**(provenance_of(fresh) or {}), "version": ""}


def _copy(expert: Source, name: str, sink: Sink) -> None:
    """One tensor as it is; bad numbers are refused by name."""
    spec = expert.specs[name]
    values = expert.raw(name, None).view(DTYPES[spec.dtype])
    if is_float(spec.dtype) and not finite(values if values.element_size() > 1 else values.float()):
        raise BadFile(
            "the tensor holds NaN or infinity",
            where=f"{expert.where}: `{name}`",
            hint="this checkpoint is damaged; leave it out",
        )
    sink.write(name, values.to(DTYPES[spec.kept]))
