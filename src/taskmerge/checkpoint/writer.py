"""Writing a checkpoint: staged under hidden names, then committed as a whole or discarded without a trace."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torch import Tensor

from taskmerge.checkpoint.canonical import OutputSpec, header_bytes
from taskmerge.checkpoint.descriptors import Descriptor
from taskmerge.checkpoint.dtypes import DTYPES, bytes_of, itemsize
from taskmerge.checkpoint.layout import Layout, check_target, plan_layout
from taskmerge.checkpoint.publish import publish
from taskmerge.checkpoint.staging import create_staging_file, create_staging_folder, remove, remove_stale
from taskmerge.checkpoint.writeback import Writeback
from taskmerge.errors import BadOutput

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PREALLOCATION = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def lay_out(
    path: Path,
    specs: Sequence[OutputSpec],
    *,
    overwrite: bool = False,
    shard_size: int | None = None,
    reserve: int = 4096,
    sidecars: Mapping[str, bytes | Path] | None = None,
    folder: bool = False,
) -> Layout:
    """The files that `stage` would write with these arguments; touches nothing.

    Raises BadOutput when one of them, or a part of an earlier output of that name, exists (without `overwrite`) or
    cannot be replaced.
    """
    with _explained(path, 0):
        layout = plan_layout(path, specs, shard_size=shard_size, reserve=reserve, sidecars=sidecars, folder=folder)
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
) -> Iterator["Sink"]:
    """Stage a checkpoint at `path`; what is not committed inside the block vanishes at its end.

    A `path` that is a folder (or `folder=True`) gets the Hugging Face layout, with `sidecars` beside the weights; any
    other is one .safetensors file, or shards of it. Tensors fall into shards of `shard_size` bytes in the order
    given. `reserve` bytes of every header are kept for the metadata of `commit`. Space for all weights is taken
    here, so a full disk is found at the start. Raises BadOutput when the output exists (without `overwrite`) or
    cannot be written.
    """
    layout = lay_out(
        path, specs, overwrite=overwrite, shard_size=shard_size, reserve=reserve, sidecars=sidecars, folder=folder
    )
    with ExitStack() as cleanup:
        with _explained(layout.path, layout.size):
            work = _working_folder(layout, cleanup)
            for inner in {(work / name).parent for name in layout.names} - {work}:
                _make_folders(inner, cleanup)
            staged = {name: _StagedFile(work / name, cleanup) for name in layout.names}
            _take_space(layout, staged)
            for name, content in layout.companions.items():
                staged[name].fill(content)
        yield Sink(layout, staged, work, overwrite=overwrite, cleanup=cleanup)


class Sink:
    """An open staged checkpoint: takes tensors in any order and from several threads, then commits.

    `path` is what a reader opens once committed, `files` every file that commit brings into being.
    """

    def __init__(
        self, layout: Layout, staged: "Mapping[str, _StagedFile]", work: Path, *, overwrite: bool, cleanup: ExitStack
    ) -> None:
        self.path = layout.path
        self.files = tuple(layout.folder / name for name in layout.names)
        self._layout = layout
        self._staged = staged
        self._work = work
        self._overwrite = overwrite
        self._places = {spec.name: (spec, file) for file, plan in layout.weights.items() for spec in plan.specs}
        self._missing = {name: spec.nbytes for name, (spec, _) in self._places.items()}
        self._lock = threading.Lock()
        self._writeback = Writeback()
        cleanup.callback(self._writeback.stop)

    def write(self, name: str, data: Tensor | bytes | bytearray | memoryview, start_element: int = 0) -> None:
        """Write elements of a tensor to their final place, from `start_element` on; every element exactly once.

        A tensor must be contiguous, on the CPU and of the declared dtype. Raises BadOutput when the disk is full.
        """
        spec, file = self._places[name]
        view = _checked_bytes(data, spec)
        start = start_element * itemsize(spec.dtype)
        if start < 0 or start + len(view) > spec.nbytes:
            raise ValueError(f"`{name}` has {spec.nbytes} bytes, got [{start}, {start + len(view)})")
        descriptor = self._staged[file].descriptor
        with _explained(self.path, self._layout.size), descriptor.use() as number:
            _write_all(number, view, self._layout.weights[file].starts[name] + start)
        with self._lock:
            self._missing[name] -= len(view)
        self._writeback.wrote(descriptor, len(view))

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Fill the headers, sync everything to disk, and give the files their names; the index comes last.

        Raises ValueError when a tensor is incomplete, BadOutput when the metadata exceeds the reserve, when the
        disk is full, or when the output has come into being meanwhile (without `overwrite`).
        """
        incomplete = [name for name, missing in self._missing.items() if missing]
        if incomplete:
            raise ValueError(f"not every element was written exactly once: {', '.join(incomplete[:5])}")
        headers = {name: header_bytes(plan, metadata) for name, plan in self._layout.weights.items()}
        with _explained(self.path, self._layout.size):
            self._writeback.finish()
            for name, staged in self._staged.items():
                with staged.descriptor.use() as number:
                    _write_all(number, memoryview(headers.get(name, b"")), 0)
                    os.fsync(number)
            paths = {name: staged.path for name, staged in self._staged.items()}
            publish(self._layout, paths, self._work, overwrite=self._overwrite)


class _StagedFile:
    """A file under its staging name; `cleanup` closes it and removes the name if it still is there."""

    def __init__(self, final: Path, cleanup: ExitStack) -> None:
        self.path, number = create_staging_file(final)
        cleanup.callback(remove, self.path)
        self.descriptor = Descriptor(number)
        cleanup.callback(self.descriptor.close)

    def fill(self, content: bytes | Path) -> None:
        """Write the whole file."""
        with self.descriptor.use() as number, open(number, "wb", closefd=False) as target:
            if isinstance(content, bytes):
                target.write(content)
                return
            with content.open("rb") as source:
                shutil.copyfileobj(source, target)


def _working_folder(layout: Layout, cleanup: ExitStack) -> Path:
    """The folder to stage in: the final one, or for a new output folder a staging folder beside it."""
    new_folder = layout.is_folder and not layout.folder.exists()
    parent = layout.folder.parent if new_folder else layout.folder
    _make_folders(parent, cleanup)
    if layout.is_folder:
        remove_stale(layout.folder.parent, lambda name: name == layout.folder.name)
    if not new_folder:
        remove_stale(layout.folder, lambda name: layout.family.fullmatch(name) or name in layout.companions)
        return layout.folder
    work, number = create_staging_folder(layout.folder)
    cleanup.callback(os.close, number)
    cleanup.callback(remove, work)
    return work


def _make_folders(folder: Path, cleanup: ExitStack) -> None:
    """Create missing folders; those that stay empty go again."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        cleanup.callback(_remove_if_empty, parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _take_space(layout: Layout, staged: "Mapping[str, _StagedFile]") -> None:
    """Reserve the disk space of all weights, where the file system can; where it cannot, measure only."""
    if _free_bytes(layout.folder) < layout.size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name, plan in layout.weights.items():
        with staged[name].descriptor.use() as number:
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


@contextmanager
def _explained(path: Path, needed: int) -> Iterator[None]:
    """Turn the system's errors into BadOutput: the disk is full, or whatever keeps the output from being written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what = f"disk full: the output needs {needed:,} bytes, {_free_bytes(path):,} are free"
            raise BadOutput(what, where=str(path), hint="free space, or choose another disk with -o") from error
        what = f"cannot be written: {error.strerror or error}"
        raise BadOutput(what, where=str(path), hint="choose another output with -o") from error


def _free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds (or will hold) `path`."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize
