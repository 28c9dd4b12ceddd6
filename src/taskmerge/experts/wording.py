"""Inputs in different dialects as one model: all are read in the words of the first, and notes say so."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.checkpoint.quantised import read_config
from taskmerge.checkpoint.wording import translations
from taskmerge.experts.sources import CheckpointSource
from taskmerge.specs.renaming import Renaming


def in_one_dialect(sources: Sequence[CheckpointSource], like: Checkpoint | None = None) -> list[str]:
    """Has every source read in the words of the first (of `like`, if there is one); a note for each that it changes."""
    files = [(source.specs, config_of(source.checkpoint)) for source in sources]
    if like is not None:
        files, read, name = [(like.specs, config_of(like)), *files], sources, str(like.path)
    elif len(sources) > 1:
        read, name = sources[1:], sources[0].where
    else:
        return []
    notes = []
    for source, translation in zip(read, translations(files), strict=True):
        if translation is not None:
            notes.append(f"{source.where}: {translation.said} {name}")
            source.translate(translation)
    return notes


def read_like(
    checkpoint: Checkpoint, like: Checkpoint, prefix: str = "", renamings: Sequence[Renaming] = ()
) -> CheckpointSource:
    """A checkpoint in the words of another one."""
    source = CheckpointSource("", checkpoint, prefix=prefix, renamings=renamings)
    in_one_dialect([source], like)
    return source


def config_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The config.json beside a checkpoint."""
    return read_config(checkpoint.home)
