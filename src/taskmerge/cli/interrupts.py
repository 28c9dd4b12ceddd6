"""Ctrl-C while something is learnt: the update under way is finished and saved first, unless it comes twice."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from taskmerge.stops import Heard

SAVING = "note: the update under way is finished and saved first; Ctrl-C again leaves at once\n"


@contextmanager
def saved_first(*, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Inside, a first Ctrl-C makes what is given true and is raised at the end of the block; a second one is at once.

    Where Ctrl-C is not as Python has it (torchrun's processes, a shell's background jobs, a thread of another program),
    it stays as it is.
    """
    asked: list[int] = []

    def first(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)
        if not quiet:
            with suppress(OSError):  # written past any buffer: a handler may have come in the midst of another line
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, SAVING.encode())

    before = signal.getsignal(signal.SIGINT)
    ours = isinstance(getattr(before, "__self__", None), Heard)
    if not (ours or before is signal.default_int_handler) or not _set(first):
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _set(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Whether Ctrl-C goes to this handler now: only the main thread may say so."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        return False
    return True
