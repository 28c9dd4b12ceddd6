"""The folder that an adaptation writes: where it may go, what is kept while it runs, its parts, the manifest last."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskmerge.adaptation.running import STATE, TRACE
from taskmerge.adaptation.sides import BLOCK
from taskmerge.adaptation.state import FILE
from taskmerge.adaptation.tasks import TaskSide
from taskmerge.checkpoint.adapted import MANIFEST, MODEL, PLACES, Manifest, Part, is_adapted, write_manifest
from taskmerge.checkpoint.claims import lock
from taskmerge.checkpoint.disk import explained
from taskmerge.checkpoint.learned import write_learned
from taskmerge.checkpoint.publish import publish_folder
from taskmerge.checkpoint.staging import is_staging, remove_stale
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.errors import BadFile, BadOutput
from taskmerge.methods.composed import Learned
from taskmerge.models.adapters import ProbAdapter, SurgeryAdapter, write_adapter
from taskmerge.models.head_files import write_head
from taskmerge.stops import held

OWN = frozenset({MANIFEST, MODEL, STATE, *PLACES.values()})
"""What a folder of an adaptation holds, and nothing else does."""


@dataclass(frozen=True)
class Folder:
    """`path` is where the run works: the folder that was asked for, or, while a finished one is to be replaced, a
    hidden one beside it that takes its `place` in the end."""

    path: Path
    place: Path
    resumes: bool
    new: bool = True

    def abandon(self) -> None:
        """Takes away what a run has left that saved no state: nothing could be continued from it."""
        if is_adapted(self.path) or resumable(self.place):
            return
        with held():
            if self.new:
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                _empty(self.path)

    def finish(self, manifest: Manifest, *, keep_state: bool) -> None:
        """The manifest, last; only then the state goes, and a finished folder that was here before."""
        write_manifest(self.path, manifest)
        if not keep_state:
            shutil.rmtree(self.path / STATE, ignore_errors=True)
        if self.path == self.place:
            return
        publish_folder(self.path, _real(self.place))


def _real(place: Path) -> Path:
    """Where it is: behind links, and under its own name."""
    return Path(os.path.realpath(place))


def _empty(folder: Path) -> None:
    """Takes everything out of a folder, which itself may be a link or the working directory."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def working_path(place: Path) -> Path:
    """Where a run works that is to end up in `place`."""
    real = _real(place)
    return real.with_name(f".{real.name}.unfinished") if is_adapted(place) else place


def resumable(place: Path) -> bool:
    """Whether a run that was to end up in `place` has saved a state from which it can be continued."""
    return (working_path(place) / STATE / FILE).is_file()


def check_free(place: Path, *, overwrite: bool, resume: bool) -> None:
    """Raises BadOutput for what is in the way of a run, BadFile where there is nothing to resume."""
    if place.exists() and not place.is_dir():
        raise BadOutput("is a file: an adaptation writes a folder", where=str(place), hint="choose another with -o")
    if is_adapted(place) and not overwrite:
        raise BadOutput("exists already", where=str(place), hint="--overwrite replaces it, -o names another")
    names = os.listdir(place) if place.is_dir() and not is_adapted(place) else []
    strangers = sorted(name for name in names if name not in OWN and not is_staging(name))
    if strangers:
        what = f"holds something else ({strangers[0]})"
        raise BadOutput(what, where=str(place), hint="name an empty or a new folder with -o")
    unfinished = (working_path(place) / STATE).is_dir()
    if resume and not unfinished:
        what = "there is no unfinished run to resume"
        raise BadFile(what, where=str(place), hint="leave --resume out, or name the folder of that run with -o")
    if not resume and unfinished and not overwrite:
        hint = "--resume continues it, --overwrite starts again"
        raise BadOutput("holds an unfinished run", where=str(place), hint=hint)


@contextmanager
def open_folder(place: Path, *, overwrite: bool, resume: bool) -> Iterator[Folder]:
    """Where a run works, made if it isn't there, and its alone inside; raises what `check_free` raises, and BadOutput
    where another run works.

    A finished folder is replaced only by a finished one: the run that replaces it works beside it.
    """
    check_free(place, overwrite=overwrite, resume=resume)
    path = working_path(place)
    new = not path.is_dir()
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone(path, place))
            if not resume:
                _empty(path)
        except OSError as error:
            what = f"cannot be made: {error.strerror}"
            raise BadOutput(what, where=str(place), hint="choose another with -o") from error
        for folder in (path, *(path / part for part in PLACES.values())):
            if folder.is_dir():
                remove_stale(folder, lambda name: True)  # what a killed run was writing
        yield Folder(path, place, resume, new)


@contextmanager
def _alone(path: Path, place: Path) -> Iterator[None]:
    """Holds the lock of the folder, which goes with it where it is renamed, and ends with the process."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not lock(number):
            hint = "wait until it is done or end it, or name another folder with -o"
            raise BadOutput("another run is writing here", where=str(place), hint=hint)
        yield
    finally:
        os.close(number)


def write_parts(
    folder: Path, sides: Sequence[TaskSide], learned: Learned | None, names: Mapping[str, str], *, heads: bool
) -> list[Part]:  # fmt: skip
    """Writes what was learnt, and says which parts that makes; `names` are the model's of the encoder's tensors."""
    parts: list[Part] = []
    if heads:
        parts.append("heads")
    if any(name.startswith(BLOCK) for side in sides for name in side.own):
        parts.append("blocks")
    if any(side.adapter is not None for side in sides):
        parts.append("adapters")
    for part in parts:
        with explained(folder / PLACES[part]):
            (folder / PLACES[part]).mkdir(exist_ok=True)
    for side in sides:
        _write_side(folder, side, names, heads=heads)
    if learned is not None:
        write_learned(folder, learned)
        parts.append("coefficients")
        if learned.masks:
            parts.append("masks")
    return [*parts, "trace"] if (folder / TRACE).exists() else parts


def _write_side(folder: Path, side: TaskSide, names: Mapping[str, str], *, heads: bool) -> None:
    """One task's own parts."""
    file = f"{side.name}.safetensors"
    if heads:
        write_head(folder / PLACES["heads"] / file, side.head, overwrite=True)
    if isinstance(side.adapter, SurgeryAdapter | ProbAdapter):
        write_adapter(folder / PLACES["adapters"] / file, side.adapter, overwrite=True)
    block = {name.removeprefix(BLOCK): value.detach() for name, value in side.own.items() if name.startswith(BLOCK)}
    if block:
        tensors = {_model_name(names, name): value for name, value in block.items()}
        write_tensors(folder / PLACES["blocks"] / file, tensors, {"kind": "block"}, overwrite=True)


def _model_name(names: Mapping[str, str], name: str) -> str:
    if name not in names:
        raise BadFile(f"the merged model has no tensor for `{name}` of the block", hint="give --layer another block")
    return names[name]
