"""Which items of a split are loaded: drawn by a seed, from the cache or decoded, corrupted where that is asked."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as decoder_version

from taskmerge.data.cache import cache_file, read_items, write_items
from taskmerge.data.corruptions import Corruption, corrupt_pixels
from taskmerge.data.decoding import decoded
from taskmerge.data.items import Items
from taskmerge.data.sources.contract import ItemSource
from taskmerge.data.sources.open import open_source
from taskmerge.errors import BadFile, UsageError, unknown_name
from taskmerge.seeds import uniform_at
from taskmerge.specs.suite import Location, Task
from taskmerge.types import Inputs, Note, Prepare, unheard

LEAST_SECONDS = 0.5
"""What took less to decode and preprocess is not kept: an .npz of small pictures, a few thousand texts."""
BYTES_A_SECOND = 4e8
"""How fast kept items come back, checked: decoding that is not much slower is not worth their place on the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is taken of a split, and how.

    `resolve` gives the path of a location. `limit` takes that many items, drawn by `seed` alone. `skip_bad` leaves out
    what cannot be decoded and counts it. With `cache`, a folder, what was slow to make is kept there and comes back bit
    for bit. `corrupt` corrupts the prepared pictures. `note` is told how classes were matched, and when nothing could
    be kept.
    """

    resolve: Callable[[Location], Path]
    limit: int | None = None
    seed: int = 0
    skip_bad: bool = False
    cache: Path | None = None
    corrupt: Corruption | None = None
    note: Note = unheard


@dataclass(frozen=True)
class Drawn:
    """A split that was opened, and the items drawn from it: their places in the source, ascending."""

    task: str
    source: ItemSource
    places: Sequence[int]


def draw(task: Task, split: str, options: LoadOptions, *, labelled: bool) -> Drawn:
    """Opens a split of a task and draws its items: all, or `limit` of them.

    With `labelled` the source has the labels of a split that has any; without, they are out of its reach.
    """
    if split not in task.splits:
        raise unknown_name(f"split of `{task.name}`", split, task.splits, where=task.place or None)
    spec = task.splits[split] if labelled else replace(task.splits[split], y=None)
    source = open_source(spec, split, options.resolve)
    if source.length == 0:
        raise BadFile(f"split `{split}` of `{task.name}` has no items", where=source.where, hint="check the file")
    return Drawn(task.name, source, _places(source.length, options.limit, options.seed, task.name, split))


def items_of(drawn: Drawn, prepare: Prepare, options: LoadOptions) -> Items:
    """What was drawn, decoded and prepared, in the source's order."""
    kept = _Cache(drawn, prepare.key, options)
    items = kept.or_made((), lambda: decoded(drawn.source, drawn.places, prepare, skip_bad=options.skip_bad))
    if options.corrupt is None:
        return items
    corruption, seed = options.corrupt, options.seed
    also = (corruption.name, corruption.severity, seed)
    return kept.or_made(also, lambda: _corrupted(items, corruption, seed, drawn.task))


def _places(length: int, limit: int | None, seed: int, task: str, split: str) -> list[int]:
    """All places, or `limit` of them, ascending. A smaller limit draws a part of what a larger one draws."""
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} leaves nothing", where="--limit", hint="such as --limit 500")
    if limit is None or limit >= length:
        return list(range(length))
    order = np.argsort(uniform_at(seed, task, f"items of {split}", 0, length).numpy(), kind="stable")
    return sorted(order[:limit].tolist())


@dataclass(frozen=True)
class _Cache:
    """The kept inputs of drawn items, prepared in one way, or no cache at all."""

    drawn: Drawn
    preprocessing: str
    options: LoadOptions

    def or_made(self, also: tuple[Any, ...], make: Callable[[], Items]) -> Items:
        """What is kept under the source, the places, the preprocessing and `also`, else what `make` makes."""
        if self.options.cache is None:
            return make()
        file = self._file(self.options.cache, also)
        kept = read_items(file)
        if kept is not None and (self.options.skip_bad or not kept.skipped):
            return kept
        start = time.perf_counter()
        items = make()
        if _worth_keeping(items.inputs, time.perf_counter() - start):
            write_items(file, items, self.options.note)
        return items

    def _file(self, folder: Path, also: tuple[Any, ...]) -> Path:
        places = hashlib.sha256(np.asarray(self.drawn.places, dtype="<i8").tobytes()).hexdigest()
        return cache_file(folder, *self.drawn.source.identity, places, self.preprocessing, decoder_version, *also)


def _worth_keeping(inputs: Inputs, seconds: float) -> bool:
    return seconds > LEAST_SECONDS + 2 * sum(tensor.nbytes for tensor in inputs.values()) / BYTES_A_SECOND


def _corrupted(clean: Items, corruption: Corruption, seed: int, task: str) -> Items:
    """The same items with corrupted pictures; the fingerprint says so."""
    if "pixels" not in clean.inputs:
        raise UsageError(
            f"`{corruption.name}` corrupts pictures, and the items of `{task}` are texts",
            where="--corrupt",
            hint="leave --corrupt out for this suite",
        )
    pixels = corrupt_pixels(clean.inputs["pixels"], clean.indices, corruption, seed)
    content = f"{clean.fingerprint}\0{corruption.name}\0{corruption.severity}\0{seed}"
    return replace(
        clean, inputs={**clean.inputs, "pixels": pixels}, fingerprint=hashlib.sha256(content.encode()).hexdigest()
    )
