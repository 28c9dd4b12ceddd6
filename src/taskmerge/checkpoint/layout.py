"""Where a checkpoint is written: the names of its files, and what stands in their way."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmerge.checkpoint.canonical import FilePlan, OutputSpec, plan_file, split_into_shards
from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.checkpoint.header import METADATA_KEY
from taskmerge.checkpoint.weights import GENERATION, SAFE_ENDING, SAFE_INDEX_ENDING, SHARD
from taskmerge.errors import BadOutput

FOLDER_STEM = "model"


@dataclass(frozen=True)
class Layout:
    """The files of one output: weights by number, and what goes beside them (sidecars by name).

    `path` is what a reader opens: the file, the index, or the folder. Shards carry their generation in their names, so
    that those of two runs never have one name: the index alone says which of them are the model.
    """

    path: Path
    folder: Path
    stem: str
    is_folder: bool
    weights: Sequence[FilePlan]
    companions: Mapping[str, bytes | Path]

    @property
    def sharded(self) -> bool:
        """Whether there are several weight files and an index."""
        return len(self.weights) > 1

    @property
    def index(self) -> str:
        """The index's name."""
        return self.stem + SAFE_INDEX_ENDING

    def weight_names(self, generation: str = "0" * GENERATION) -> list[str]:
        """The names of the weight files, shards with their generation."""
        if not self.sharded:
            return [self.stem + SAFE_ENDING]
        count = len(self.weights)
        return [f"{self.stem}-g{generation}-{n:05d}-of-{count:05d}{SAFE_ENDING}" for n in range(1, count + 1)]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that do not depend on the generation: sidecars, and what holds or joins the weights."""
        return (*self.companions, self.index if self.sharded else self.stem + SAFE_ENDING)

    @property
    def family(self) -> re.Pattern[str]:
        """The names of weight files and index that any run to this output's name writes."""
        single, index = re.escape(SAFE_ENDING), re.escape(SAFE_INDEX_ENDING)
        return re.compile(rf"{re.escape(self.stem)}(({SHARD})?{single}|{index})")

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(plan.size for plan in self.weights)


def plan_layout(
    path: Path,
    specs: Sequence[OutputSpec],
    *,
    shard_size: int | None = None,
    reserve: int = 4096,
    sidecars: Mapping[str, bytes | Path] | None = None,
    folder: bool = False,
    stem: str | None = None,
) -> Layout:
    """Names and sizes of the files to write; touches nothing.

    A `path` that is a folder (or `folder=True`) gets the Hugging Face layout, with weights called `stem` (`model`); any
    other ends in .safetensors.
    """
    _check_specs(specs)
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    is_folder = folder or path.is_dir()
    if not is_folder and not path.name.endswith(SAFE_ENDING):
        raise BadOutput(f"does not end in {SAFE_ENDING}", where=str(path), hint="name a .safetensors file or a folder")
    if sidecars and not is_folder:
        raise ValueError("sidecars need a folder")
    stem = (stem or FOLDER_STEM) if is_folder else path.name.removesuffix(SAFE_ENDING)
    home = path if is_folder else path.parent
    weights = [plan_file(shard, reserve) for shard in split_into_shards(specs, shard_size)]
    companions = dict(sorted((sidecars or {}).items()))
    reader = path if is_folder or len(weights) == 1 else home / (stem + SAFE_INDEX_ENDING)
    return Layout(reader, home, stem, is_folder, weights, companions)


def check_target(layout: Layout, *, overwrite: bool) -> None:
    """Raise BadOutput when the output, or a part of an earlier one of that name, exists or cannot be replaced."""
    if layout.is_folder and layout.folder.exists() and not layout.folder.is_dir():
        raise BadOutput("is a file, not a folder", where=str(layout.folder), hint="choose another output folder")
    other = [
        layout.folder / name for name in layout.names if not _same(layout.folder / name, layout.companions.get(name))
    ]
    existing = sorted({path for path in (*other, *earlier_output(layout)) if _exists(path)})
    for path in existing:
        if not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode) and not path.is_symlink():
            raise BadOutput("is not a regular file and is not replaced", where=str(path), hint="choose another output")
    if existing and not overwrite:
        names = ", ".join(path.name for path in existing[:5]) + (", ..." if len(existing) > 5 else "")
        where = str(existing[0] if len(existing) == 1 else layout.folder)
        what = "exists already" if len(existing) == 1 else f"output exists already: {names}"
        raise BadOutput(what, where=where, hint="pass --overwrite to replace it, or choose another output with -o")


def earlier_output(layout: Layout) -> list[Path]:
    """Weight files and index, the index first, that a run to this name has left, with whatever number of shards."""
    if not layout.folder.is_dir():
        return []
    found = [entry for entry in layout.folder.iterdir() if layout.family.fullmatch(entry.name)]
    return sorted(found, key=lambda path: (not path.name.endswith(SAFE_INDEX_ENDING), path.name))


def _check_specs(specs: Sequence[OutputSpec]) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names) or METADATA_KEY in names:
        raise ValueError(f"tensor names must be unique, and none may be {METADATA_KEY}")
    unknown = [spec.dtype for spec in specs if spec.dtype not in DTYPES]
    if unknown:
        raise ValueError(f"unknown dtype {unknown[0]}")


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _same(path: Path, content: bytes | Path | None) -> bool:
    """Whether a sidecar is there already, byte for byte."""
    if content is None or not path.is_file():
        return False
    return path.read_bytes() == (content if isinstance(content, bytes) else content.read_bytes())
