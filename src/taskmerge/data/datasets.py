"""The items of a task's split: found, sub-sampled, decoded and preprocessed once, labels checked."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as decoder_version
from torch import Tensor

from taskmerge.data.cache import cache_file, read_items, write_items
from taskmerge.data.corruptions import Corruption, corrupt_pixels
from taskmerge.data.items import Items
from taskmerge.data.labels import read_labels
from taskmerge.data.sources.contract import Broken, ItemSource, Note
from taskmerge.data.sources.open import open_source
from taskmerge.errors import BadFile, Mismatch, UsageError, unknown_name
from taskmerge.numerics.device import cores
from taskmerge.seeds import uniform_at
from taskmerge.specs.suite import Location, Split, Task
from taskmerge.types import Inputs, Prepare

PICTURES_AT_A_TIME = 16
"""In one thread; a photograph of 12 megapixels takes 36 MB while it is decoded."""
SECONDS_WORTH_A_THREAD = 2e-4
"""A picture that takes less gains nothing from threads: they would wait for each other's Python."""
LEAST_SECONDS = 0.5
"""What took less to decode and preprocess is not kept: an .npz of small pictures, a few thousand texts."""
BYTES_A_SECOND = 4e8
"""How fast kept items come back, checked: decoding that is not much slower is not worth their place on the disk."""


def load_items(
    task: Task,
    split: str,
    prepare: Prepare,
    *,
    resolve: Callable[[Location], Path],
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    skip_bad: bool = False,
    corrupt: Corruption | None = None,
    note: Note = lambda _: None,
) -> Items:
    """The items of one split in the source's order, or `limit` of them drawn by `seed` alone.

    Pictures are decoded and prepared in portions, in several threads; texts in one go, so that their inputs share one
    length. With `cache`, a folder, what was slow to make is kept there and comes back bit for bit. `corrupt` corrupts
    the prepared pictures. `skip_bad` leaves out what cannot be decoded and counts it. `note` is told how classes were
    matched, and when nothing could be kept. Labels are read and checked only if the split has `y`.

    Errors: `UsageError` for a split or column that does not exist, `BadFile` for an empty split, an item that cannot
    be decoded, or a label that is none, `Mismatch` for maps of another size than the pictures.
    """
    chosen = _split(task, split)
    source = open_source(chosen, split, resolve)
    if source.length == 0:
        raise BadFile(f"split `{split}` of `{task.name}` has no items", where=source.where, hint="check the file")
    indices = _drawn(source.length, limit, seed, task.name, split)
    labels = None if source.labels is None else read_labels(source, indices, task, note)
    kept = _Cache(cache, source, indices, prepare.key, skip_bad, note)
    items = kept.or_made((), lambda: _decoded(source, indices, prepare, skip_bad))
    if corrupt is not None:
        clean, what = items, (corrupt.name, corrupt.severity, seed)
        items = kept.or_made(what, lambda: _corrupted(clean, corrupt, seed, task))
    return items if labels is None else _labelled(items, labels, indices, source.where)


@dataclass(frozen=True)
class _Cache:
    """The kept inputs of these items of a source, or no cache at all."""

    folder: Path | None
    source: ItemSource
    indices: Sequence[int]
    preprocessing: str
    skip_bad: bool
    note: Note

    def or_made(self, also: tuple[Any, ...], make: Callable[[], Items]) -> Items:
        """What is kept under the source, the indices, the preprocessing and `also`, else what `make` makes."""
        if self.folder is None:
            return make()
        drawn = hashlib.sha256(np.asarray(self.indices, dtype="<i8").tobytes()).hexdigest()
        file = cache_file(self.folder, *self.source.identity, drawn, self.preprocessing, decoder_version, *also)
        found = read_items(file)
        if found is not None and (self.skip_bad or not found.skipped):
            return found
        start = time.perf_counter()
        made = make()
        if _worth_keeping(made.inputs, time.perf_counter() - start):
            write_items(file, made, self.note)
        return made


def _worth_keeping(inputs: Inputs, seconds: float) -> bool:
    return seconds > LEAST_SECONDS + 2 * sum(one.nbytes for one in inputs.values()) / BYTES_A_SECOND


def _split(task: Task, split: str) -> Split:
    if split not in task.splits:
        raise unknown_name(f"split of `{task.name}`", split, task.splits, where=task.place or None)
    return task.splits[split]


def _drawn(length: int, limit: int | None, seed: int, task: str, split: str) -> list[int]:
    """All places, or `limit` of them, ascending. A smaller limit draws a part of what a larger one draws."""
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} leaves nothing", where="--limit", hint="such as --limit 500")
    if limit is None or limit >= length:
        return list(range(length))
    order = np.argsort(uniform_at(seed, task, f"items of {split}", 0, length).numpy(), kind="stable")
    return sorted(order[:limit].tolist())


# --- decoding --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Portion:
    """Some decoded items: their inputs (None if all are broken), places, digests, and what is broken by place."""

    inputs: Inputs | None
    places: list[int]
    digests: list[bytes]
    broken: dict[int, str]


def _decoded(source: ItemSource, indices: Sequence[int], prepare: Prepare, skip_bad: bool) -> Items:
    filled: dict[str, Tensor] = {}
    places: list[int] = []
    content = hashlib.sha256()
    broken: dict[int, str] = {}
    for portion in _portions(source, indices, prepare):
        if portion.broken and not skip_bad:
            place, reason = next(iter(portion.broken.items()))
            hint = "repair or remove it, or leave such items out with --skip-bad"
            raise BadFile(f"cannot be decoded: {reason}", where=source.place(place), hint=hint)
        for name, tensor in (portion.inputs or {}).items():
            if name not in filled:
                filled[name] = torch.empty((len(indices), *tensor.shape[1:]), dtype=tensor.dtype)
            filled[name][len(places) : len(places) + len(tensor)] = tensor
        places += portion.places
        broken |= portion.broken
        content.update(b"".join(portion.digests))
    if not places:
        raise BadFile(f"none of {len(broken)} items can be decoded", where=source.where, hint="check the files")
    inputs = {name: tensor[: len(places)] for name, tensor in filled.items()}
    return Items(inputs, None, content.hexdigest(), torch.tensor(places, dtype=torch.int64), len(broken))


def _portions(source: ItemSource, indices: Sequence[int], prepare: Prepare) -> Iterator[_Portion]:
    """Portions in order. Only a few are under way at once, whatever the number of items."""
    size = PICTURES_AT_A_TIME if source.pictures else len(indices)
    work = _batched(zip(indices, source.read(indices), strict=True), size)
    start = time.perf_counter()
    yield _portion(next(work), source, prepare)
    slow = time.perf_counter() - start > size * SECONDS_WORTH_A_THREAD
    threads = min(cores(), 8) if slow else 1
    if threads == 1:
        yield from (_portion(batch, source, prepare) for batch in work)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Portion]] = deque()
        try:
            for batch in work:
                waiting.append(pool.submit(_portion, batch, source, prepare))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _portion(stored: Sequence[tuple[int, Any]], source: ItemSource, prepare: Prepare) -> _Portion:
    decoded = [(place, source.decode(item)) for place, item in stored]
    broken = {place: item.reason for place, item in decoded if isinstance(item, Broken)}
    whole = [(place, item) for place, item in decoded if place not in broken]
    raw = [item for _, item in whole]
    digests = [_digest(item) for item in raw]
    return _Portion(prepare(raw) if raw else None, [place for place, _ in whole], digests, broken)


def _digest(raw: Any) -> bytes:
    """SHA-256 of a decoded item: equal for a picture and an array of the same pixels, whatever the file."""
    if isinstance(raw, str | tuple):
        texts = (raw,) if isinstance(raw, str) else raw
        return hashlib.sha256(b"".join(_framed(text.encode("utf-8", "surrogatepass")) for text in texts)).digest()
    pixels = np.ascontiguousarray(np.asarray(raw) if isinstance(raw, Image.Image) else raw)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


# --- what follows the decoding ---------------------------------------------------------------------------------


def _corrupted(clean: Items, corrupt: Corruption, seed: int, task: Task) -> Items:
    if "pixels" not in clean.inputs:
        raise UsageError(
            f"`{corrupt.name}` corrupts pictures, and the items of `{task.name}` are texts",
            where="--corrupt",
            hint="leave --corrupt out for this suite",
        )
    pixels = corrupt_pixels(clean.inputs["pixels"], clean.indices, corrupt, seed)
    said = f"{clean.fingerprint}\0{corrupt.name}\0{corrupt.severity}\0{seed}"
    return replace(
        clean, inputs={**clean.inputs, "pixels": pixels}, fingerprint=hashlib.sha256(said.encode()).hexdigest()
    )


def _labelled(items: Items, labels: Tensor, indices: Sequence[int], where: str) -> Items:
    """Items with the labels of those that could be decoded; the fingerprint then covers the labels too."""
    if labels.ndim > 1 and "pixels" in items.inputs and labels.shape[-2:] != items.inputs["pixels"].shape[-2:]:
        maps, pixels = (f"{one.shape[-2]}x{one.shape[-1]}" for one in (labels, items.inputs["pixels"]))
        what = f"label maps are {maps}, pictures {pixels}"
        raise Mismatch(what, where=where, hint="bring labels to the pictures' size, a label a pixel")
    if items.skipped:
        labels = labels[torch.isin(torch.tensor(indices, dtype=torch.int64), items.indices)]
    said = f"{items.fingerprint}\0{labels.dtype}\0{tuple(labels.shape)}\0".encode()
    fingerprint = hashlib.sha256(said + labels.contiguous().numpy().tobytes()).hexdigest()
    return replace(items, labels=labels, fingerprint=fingerprint)
