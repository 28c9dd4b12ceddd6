"""Writing a checkpoint: staged under hidden names, then committed as a whole or discarded without a trace."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from taskmerge.checkpoint.canonical import OutputSpec, header_bytes, index_bytes
from taskmerge.checkpoint.descriptors import Shelf, Shelved
from taskmerge.checkpoint.disk import existing, explained, room_at
from taskmerge.checkpoint.dtypes import DTYPES, bytes_of, itemsize
from taskmerge.checkpoint.layout import Layout, check_target, plan_layout
from taskmerge.checkpoint.publish import Sealed, publish
from taskmerge.checkpoint.staging import close, create_staging_folder, discard, remove, remove_stale, settle
from taskmerge.checkpoint.twins import switchable
from taskmerge.checkpoint.weights import GENERATION, SAFE_ENDING
from taskmerge.checkpoint.writeback import Writeback
from taskmerge.stops import held, unfinished

_NO_PREALLOCATION = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_PART = ".part"
"""Ends the name of a file that is not finished: no glob for weights catches it."""


def lay_out(
    path: Path,
    specs: Sequence[OutputSpec],
    *,
    overwrite: bool = False,
    shard_size: int | None = None,
    reserve: int = 4096,
    sidecars: Mapping[str, bytes | Path] | None = None,
    folder: bool = False,
    stem: str | None = None,
) -> Layout:
    """The files that `stage` would write with these arguments; touches nothing but what a killed run left half done.

    Raises BadOutput when one of them, or a part of an earlier output of that name, exists (without `overwrite`) or
    cannot be replaced.
    """
    with explained(path):
        there = existing(path.absolute().parent)
        for place in (there.parent, there, *([path] if path.is_dir() else [])):
            settle(place)
        layout = plan_layout(
            path, specs, shard_size=shard_size, reserve=reserve, sidecars=sidecars, folder=folder, stem=stem
        )
        check_target(layout, overwrite=overwrite)
    return layout


@contextmanager
def stage(
    path: Path,
    specs: Sequence[OutputSpec],
    *,
    overwrite: bool = False,
    shard_size: int | None = None,
    reserve: int = 4096,
    sidecars: Mapping[str, bytes | Path] | None = None,
    folder: bool = False,
    stem: str | None = None,
    beside: Path | None = None,
    shared: bool = False,
) -> Iterator["Sink"]:
    """Stage a checkpoint at `path`; what is not committed inside the block vanishes at its end.

    A `path` that is a folder (or `folder=True`) gets the Hugging Face layout, with `sidecars` beside the weights, which
    are called `stem` (`model`); any other is one .safetensors file, or shards of it. Tensors fall into shards of
    `shard_size` bytes in the order given. `reserve` bytes of every header are kept for the metadata of `seal`. Space
    for all weights is taken here, so a full disk is found at the start. Where it is one of several in a folder that is
    committed as a whole, staging is `beside` that. What is `shared` with other outputs may come into being meanwhile,
    if it is the same.
    Raises BadOutput when the output exists (without `overwrite`) or cannot be written.
    """
    layout = lay_out(
        path,
        specs,
        overwrite=overwrite,
        shard_size=shard_size,
        reserve=reserve,
        sidecars=sidecars,
        folder=folder,
        stem=stem,
    )
    cleanup = ExitStack()
    with unfinished():
        try:
            with held(), explained(layout.path, layout.size):
                area, lock = _staging_area(layout, beside, cleanup)
                shelf = Shelf()
                cleanup.callback(shelf.close_all)
                files = {name: _created(area / f"{name}{_PART}", shelf, cleanup) for name in _staged_names(layout)}
                _take_space(layout, files)
                for name, content in layout.companions.items():
                    _fill(files[name], content)
                sink = Sink(layout, files, area, lock, overwrite=overwrite, shared=shared, cleanup=cleanup)
            yield sink
        finally:
            with held():
                cleanup.close()


class Sink:
    """An open staged checkpoint: takes tensors in any order and from several threads, then commits.

    `path` is what a reader opens once committed.
    """

    def __init__(
        self, layout: Layout, staged: Mapping[str, Shelved], area: Path, lock: int, *, overwrite: bool, shared: bool,
        cleanup: ExitStack,
    ) -> None:  # fmt: skip
        self.path = layout.path
        self._layout = layout
        self._staged = staged
        self._area, self._lock = area, lock
        self._overwrite, self._shared = overwrite, shared
        weights = [staged[name] for name in layout.weight_names()]
        self._weights = list(zip(weights, layout.weights, strict=True))
        self._places = {spec.name: (spec, file, plan.starts) for file, plan in self._weights for spec in plan.specs}
        self._missing = {name: spec.nbytes for name, (spec, _, _) in self._places.items()}
        self._counting = threading.Lock()
        self._sealed: Sealed | None = None
        self._writeback = Writeback()
        cleanup.callback(self._writeback.stop)

    @property
    def sealed(self) -> Sealed:
        """What `publish` takes; there is none before `seal`."""
        if self._sealed is None:
            raise ValueError("it is not sealed")
        return self._sealed

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that comes into being; known once it is sealed."""
        return tuple(self._layout.folder / name for name in self.sealed.files)

    def write(self, name: str, data: Tensor | bytes | bytearray | memoryview, start_element: int = 0) -> None:
        """Write elements of a tensor to their final place, from `start_element` on; every element exactly once.

        A tensor must be contiguous, on the CPU and of the declared dtype. Raises BadOutput when the disk is full.
        """
        spec, file, starts = self._places[name]
        view = _checked_bytes(data, spec)
        start = start_element * itemsize(spec.dtype)
        if start < 0 or start + len(view) > spec.nbytes:
            raise ValueError(f"`{name}` has {spec.nbytes} bytes, got [{start}, {start + len(view)})")
        with held():
            with explained(self.path, self._layout.size), file.use() as number:
                _write_all(number, view, starts[name] + start)
            with self._counting:
                self._missing[name] -= len(view)
            self._writeback.wrote(file, len(view))

    def seal(self, metadata: Mapping[str, str]) -> None:
        """Fill the headers, sync everything to disk and close it: what is left to do is to give the files their names.

        Raises ValueError when a tensor is incomplete, BadOutput when the metadata exceeds the reserve or the disk is
        full.
        """
        incomplete = [name for name, missing in self._missing.items() if missing]
        if incomplete:
            raise ValueError(f"not every element was written exactly once: {', '.join(incomplete[:5])}")
        headers = [header_bytes(plan, metadata) for plan in self._layout.weights]
        with held() as hold, explained(self.path, self._layout.size):
            self._writeback.finish()
            for (file, _), header in zip(self._weights, headers, strict=True):
                with file.use() as number:
                    _write_all(number, memoryview(header), 0)
            finals = self._finals(_generation(headers))
            for file in self._staged.values():
                with file.use() as number:
                    os.fsync(number)
                file.close()
                hold.hear()
        self._sealed = Sealed(self._layout, finals, self._area, self._lock, self._shared)

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Seal, and give all files their names, in one switch; no reader ever sees some of them.

        Raises what `seal` raises, and BadOutput when the output has come into being meanwhile (without `overwrite`).
        """
        self.seal(metadata)
        commit([self], overwrite=self._overwrite)

    def _finals(self, generation: str) -> dict[str, Path]:
        """Final name -> staged file, the index (written here) last."""
        layout = self._layout
        finals = {name: self._staged[name].path for name in layout.companions}
        names = layout.weight_names(generation)
        finals |= {name: file.path for name, (file, _) in zip(names, self._weights, strict=True)}
        if layout.sharded:
            index = self._staged[layout.index]
            _fill(index, index_bytes({name: plan.specs for name, plan in zip(names, layout.weights, strict=True)}))
            finals[layout.index] = index.path
        return finals


def commit(sinks: Sequence[Sink], *, overwrite: bool, folder: Path | None = None) -> None:
    """Gives the files of sealed outputs their names: those of all of them, or none. See `publish`.

    Raises BadOutput.
    """
    if sinks:
        with explained(sinks[-1].path):
            publish([sink.sealed for sink in sinks], overwrite=overwrite, folder=folder)


def _staging_area(layout: Layout, beside: Path | None, cleanup: ExitStack) -> tuple[Path, int]:
    """A staging folder and its lock: beside a folder that will change as a whole, else in the folder that the output
    goes to, or in the one above that is there already."""
    folder = layout.folder.absolute()
    whole = Path(os.path.realpath(beside if beside is not None else folder))
    home, final = existing(folder), layout.stem + SAFE_ENDING
    if (layout.is_folder or beside is not None) and switchable(whole):
        home, final = whole.parent, whole.name
    elif home != folder:
        final = folder.relative_to(home).parts[0]
    remove_stale(folder, lambda name: layout.family.fullmatch(name) or name in layout.companions)
    remove_stale(home, lambda name: name == final)
    area, lock = create_staging_folder(home / final)
    cleanup.callback(close, lock)
    cleanup.callback(discard, area)
    return area, lock


def _staged_names(layout: Layout) -> list[str]:
    return [*layout.companions, *layout.weight_names(), *([layout.index] if layout.sharded else [])]


def _created(path: Path, shelf: Shelf, cleanup: ExitStack) -> Shelved:
    """An empty file; `cleanup` removes it, where it has not become something else."""
    path.parent.mkdir(parents=True, exist_ok=True)  # of what travels in folders of its own
    cleanup.callback(remove, path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    return Shelved(shelf, path)


def _fill(file: Shelved, content: bytes | Path) -> None:
    """Write the whole file."""
    with file.use() as number, open(number, "wb", closefd=False) as target:
        if isinstance(content, bytes):
            target.write(content)
            return
        with content.open("rb") as source:
            shutil.copyfileobj(source, target)


def _generation(headers: Sequence[bytes]) -> str:
    """What tells the shards of this run from those of others: the same for the same inputs and options, whose digests
    the headers hold."""
    return hashlib.sha256(b"".join(headers)).hexdigest()[:GENERATION]


def _take_space(layout: Layout, files: Mapping[str, Shelved]) -> None:
    """Reserve the disk space of all weights, where the file system can; where it cannot, measure only."""
    room = room_at(layout.folder)
    if room is not None and room < layout.size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name, plan in zip(layout.weight_names(), layout.weights, strict=True):
        with files[name].use() as number:
            try:
                os.posix_fallocate(number, 0, plan.size)
            except OSError as error:
                if error.errno not in _NO_PREALLOCATION:
                    raise


def _checked_bytes(data: Tensor | bytes | bytearray | memoryview, spec: OutputSpec) -> memoryview:
    if not isinstance(data, Tensor):
        return memoryview(data).cast("B")
    if data.dtype != DTYPES[spec.dtype] or data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError(f"`{spec.name}` needs a contiguous CPU tensor of {DTYPES[spec.dtype]}")
    return bytes_of(data)


def _write_all(number: int, view: memoryview, offset: int) -> None:
    """Write the whole view at `offset`: one call may take less than asked (2 GiB limit, signals)."""
    done = 0
    while done < len(view):
        done += os.pwrite(number, view[done:], offset + done)
