"""Where a merge goes: the paths of its outputs, and what stands in their way before anything is read or written."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taskmerge.checkpoint.disk import existing, explained, room_at
from taskmerge.checkpoint.held import Place
from taskmerge.checkpoint.identity import FileId, file_id, file_ids
from taskmerge.checkpoint.layout import Layout, earlier_output
from taskmerge.checkpoint.weights import PICKLE_ENDINGS
from taskmerge.checkpoint.writer import lay_out
from taskmerge.errors import NotEnough, UsageError
from taskmerge.experts.arguments import Arguments, named
from taskmerge.experts.lora_names import is_adapter
from taskmerge.experts.sources import Source
from taskmerge.merging.kernels import BoundPoint
from taskmerge.specs.merge import MergeSpec, plain_value


def output_paths(
    spec: MergeSpec,
    output: Path | None,
    points: Sequence[BoundPoint],
    inputs: Arguments = (),
    base: Place | None = None,
) -> list[Path]:
    """Where every grid point goes: the name carries what varies. Of `inputs` (of adapters: their `base`) that are
    folders comes a folder."""
    chain = [spec.method, *([spec.then] if spec.then else []), *(["lines"] if spec.lines else [])]
    plain = Path(f"merged-{'-'.join(part.replace('_', '-') for part in chain)}.safetensors")
    output = output or (plain.with_suffix("") if all_folders(inputs, base) else plain)
    if output.suffix in PICKLE_ENDINGS:
        hint = f"such as `-o {output.with_suffix('.safetensors')}`"
        raise UsageError(f"{output} does not end in .safetensors: pickles are not written", where="-o", hint=hint)
    varying = [name for name, values in sorted(spec.options.items()) if len(values) > 1]
    if not varying:
        return [output]
    names = [
        "-".join(f"{name}{plain_value(point.point[name])}".replace(":", "") for name in varying) for point in points
    ]
    if is_folder(output):
        return [output / re.sub(r"_", "-", name) for name in names]
    return [output.with_name(f"{output.stem}-{re.sub('_', '-', name)}.safetensors") for name in names]


def all_folders(inputs: Arguments, base: Place | None) -> bool:
    """Whether all inputs are folders of models; of adapters alone, whether their base is one."""
    places = [place for _, place in named(inputs)]
    whole = [place for place in places if not is_adapter(place)] or ([base] if places and base else [])
    return bool(whole) and all(isinstance(place, Path) and os.path.isdir(place) for place in whole)


def is_folder(path: Path) -> bool:
    """Whether an output is a folder in Hugging Face layout."""
    return os.path.isdir(path) or path.suffix != ".safetensors"


def check_free(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuses outputs that exist, by their names alone: before any input is opened."""
    for path in paths:
        lay_out(path, (), overwrite=overwrite, folder=is_folder(path))


def files_read(sources: Iterable[Source]) -> dict[FileId, Source]:
    """The files that inputs are read from."""
    return {version: source for source in sources for version in file_ids(source.files)}


def check_kept(layout: Layout, read: Mapping[FileId, Source]) -> None:
    """Not even --overwrite replaces what is read, under whatever name: an output that would is refused."""
    for path in (*(layout.folder / name for name in layout.names), *earlier_output(layout)):
        version = file_id(path)
        if version is not None and (source := read.get(version)) is not None:
            raise UsageError(
                f"the output would replace a file of the input {source.where}, which would be lost", where=str(path),
                hint="choose another output with -o",
            )  # fmt: skip


def check_disk(needed: int, paths: Sequence[Path]) -> None:
    """Refuses outputs of so many bytes that the disk has no room for."""
    folder = existing(paths[0].absolute().parent)
    with explained(paths[0]):
        free = room_at(folder)
    if free is not None and needed > free:
        raise NotEnough(
            f"the outputs need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left",
            where=str(folder),
            hint="free space, choose another folder with -o, or write a smaller type with --dtype",
        )  # fmt: skip
