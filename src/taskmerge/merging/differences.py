"""Which tensors of a merged checkpoint are not those of a merge that was done again."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from taskmerge.checkpoint.checkpoint import PIECE, Checkpoint
from taskmerge.experts.parallel import Stopped, parallel
from taskmerge.numerics.device import cores

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Look:
    """One tensor that is looked at; its reader goes `through` its pieces."""

    name: str
    stop: threading.Event
    memory: int = 0

    def through(self, pieces: Iterable[R]) -> Iterator[R]:
        """The pieces, as long as nobody has interrupted. Raises `Stopped` then."""
        for piece in pieces:
            if self.stop.is_set():
                raise Stopped
            yield piece


def each(names: Sequence[str], look: Callable[[Look], R], threads: int | None = None) -> list[R]:
    """What `look` says of every tensor, several at once; Ctrl-C is heard at the next piece that one reads."""
    stop = threading.Event()
    jobs = [Look(name, stop) for name in names]
    return list(parallel(jobs, look, workers=threads or cores(), in_flight=PIECE, stop=stop))


def differing(file: Checkpoint, again: Checkpoint, threads: int | None = None) -> list[str]:
    """The tensors whose type, shape or bytes differ, and those that only one has, sorted."""
    names = sorted({*file.stored, *again.stored})
    same = each(names, lambda look: _same(file, again, look), threads)
    return [name for name, equal in zip(names, same, strict=True) if not equal]


def _same(file: Checkpoint, again: Checkpoint, look: Look) -> bool:
    held, right = file.stored.get(look.name), again.stored.get(look.name)
    if held is None or right is None or (held.dtype, held.shape) != (right.dtype, right.shape):
        return False
    pairs = zip(file.pieces(look.name), again.pieces(look.name), strict=True)
    return all(torch.equal(one, other) for one, other in look.through(pairs))
