"""Stored items as inputs: decoded and prepared a portion at a time, with a fingerprint of what was decoded."""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from taskmerge.data.items import Items
from taskmerge.data.sources.contract import Broken, ItemSource
from taskmerge.errors import BadFile, Mismatch
from taskmerge.numerics.device import cores
from taskmerge.types import Inputs, Prepare

PICTURES_AT_A_TIME = 16
"""In one thread; a photograph of 12 megapixels takes 36 MB while it is decoded."""
PIXELS_HELD = 48_000_000
"""Of one portion as they were decoded, besides its last picture: 144 MB in a thread."""
SECONDS_WORTH_A_THREAD = 2e-4
"""A picture that takes less gains nothing from threads: they would wait for each other's Python."""


def decoded(source: ItemSource, places: Sequence[int], prepare: Prepare, *, skip_bad: bool) -> Items:
    """The items at these places of a source, prepared, in order.

    Pictures are decoded in portions, in several threads; texts in one go, so that their inputs share one length.
    Raises BadFile for an item that cannot be decoded (`skip_bad` counts it instead), or if none can.
    """
    inputs: dict[str, Tensor] = {}
    whole: list[int] = []
    broken: dict[int, str] = {}
    content = hashlib.sha256()
    for portion in _portions(source, places, prepare):
        if portion.broken and not skip_bad:
            place, reason = next(iter(portion.broken.items()))
            hint = "repair or remove it, or leave such items out with --skip-bad"
            raise BadFile(f"cannot be decoded: {reason}", where=source.place(place), hint=hint)
        for name, tensor in (portion.inputs or {}).items():
            if name not in inputs:
                inputs[name] = torch.empty((len(places), *tensor.shape[1:]), dtype=tensor.dtype)
            _check_alike(tensor, inputs[name])
            inputs[name][len(whole) : len(whole) + len(tensor)] = tensor
        whole += portion.places
        broken |= portion.broken
        content.update(b"".join(portion.digests))
    if not whole:
        raise BadFile(f"none of {len(broken)} items can be decoded", where=source.where, hint="check the files")
    inputs = {name: tensor[: len(whole)] for name, tensor in inputs.items()}
    return Items(inputs, content.hexdigest(), torch.tensor(whole, dtype=torch.int64), len(broken))


@dataclass(frozen=True)
class _Portion:
    """Some decoded items: their inputs (None if all are broken), places, digests, and what is broken by place."""

    inputs: Inputs | None
    places: list[int]
    digests: list[bytes]
    broken: dict[int, str]


def _portions(source: ItemSource, places: Sequence[int], prepare: Prepare) -> Iterator[_Portion]:
    """Portions in order. Only a few are under way at once, whatever the number of items."""
    size = PICTURES_AT_A_TIME if source.pictures else len(places)
    work = _batched(zip(places, source.read(places), strict=True), size)
    start = time.perf_counter()
    yield _portion(next(work), source, prepare)
    slow = time.perf_counter() - start > size * SECONDS_WORTH_A_THREAD
    threads = min(cores(), 8) if slow else 1
    if threads == 1:
        yield from (_portion(stored, source, prepare) for stored in work)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Portion]] = deque()
        try:
            for stored in work:
                waiting.append(pool.submit(_portion, stored, source, prepare))
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
    """Items decoded and prepared; of large pictures only a few are held as they were decoded."""
    parts: list[Inputs] = []
    held: list[Any] = []
    portion = _Portion(None, [], [], {})
    for place, item in stored:
        raw = source.decode(item)
        if isinstance(raw, Broken):
            portion.broken[place] = raw.reason
            continue
        portion.places.append(place)
        portion.digests.append(_digest(raw))
        held.append(raw)
        if source.pictures and sum(map(_pixels, held)) > PIXELS_HELD:
            parts.append(prepare(held))
            held = []
    if held:
        parts.append(prepare(held))
    return replace(portion, inputs=_together(parts)) if parts else portion


def _together(parts: Sequence[Inputs]) -> Inputs:
    """The inputs of several parts of one portion. Raises `Mismatch` for pictures of several sizes."""
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        for name, tensor in part.items():
            _check_alike(tensor, parts[0][name])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_alike(tensor: Tensor, first: Tensor) -> None:
    if tensor.shape[1:] != first.shape[1:]:
        sizes = [" x ".join(map(str, one.shape[1:])) for one in (first, tensor)]
        raise Mismatch(f"items of several sizes: {sizes[0]} and {sizes[1]}", hint="resize them alike")


def _pixels(raw: Any) -> int:
    """The pixels of a decoded picture; none of a text."""
    if isinstance(raw, Image.Image):
        return raw.width * raw.height
    return int(raw.shape[0] * raw.shape[1]) if isinstance(raw, np.ndarray) else 0


def _digest(raw: Any) -> bytes:
    """SHA-256 of a decoded item: equal for a picture and an array of the same pixels, whatever the file."""
    if isinstance(raw, str | tuple):
        texts = (raw,) if isinstance(raw, str) else raw
        return hashlib.sha256(b"".join(_framed(text.encode("utf-8", "surrogatepass")) for text in texts)).digest()
    pixels = np.ascontiguousarray(np.asarray(raw) if isinstance(raw, Image.Image) else raw)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text
