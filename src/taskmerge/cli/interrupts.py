"""What stops a run while it learns: the update under way is finished and saved first, unless the stop comes twice."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from taskmerge.launched import seat
from taskmerge.stops import STOPS, Heard

SAVING = "note: the update under way is finished and saved first; Ctrl-C again leaves at once\n"


@contextmanager
def saved_first(*, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Inside, a first stop makes what is given true and is heard at the end of the block; a second one is at once.

    Of several processes none leaves before all have saved: torchrun passes Ctrl-C on, so that it comes twice. Signals
    that are not as the program or Python has them (a shell's background jobs, a thread of another program) stay so.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}
    alone = seat().size == 1

    def first(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if alone:
            _put(before)
        if alone and not quiet:
            with suppress(OSError):  # written past any buffer: a handler may have come in the midst of another line
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, SAVING.encode())

    before.update({number: handler for number in STOPS if _ours(handler := signal.getsignal(number))})
    if not _put(dict.fromkeys(before, first)):
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        _put(before)
    if asked:
        signal.raise_signal(asked[0])


def _ours(handler: Any) -> bool:
    """Whether a stop is heard as KeyboardInterrupt."""
    return handler is signal.default_int_handler or isinstance(getattr(handler, "__self__", None), Heard)


def _put(handlers: dict[int, Any]) -> bool:
    """Whether these are the handlers now: only the main thread may say so."""
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except ValueError:
        return False
    return True
