"""What ends a run from outside: Ctrl-C, SIGTERM, SIGHUP. Held off while files come and go: none is half done."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # Ctrl-C last: handlers are put back in this order
NOTHING_LEFT = "no unfinished output is left"
PATIENCE = 5.0
"""Seconds in which a second Ctrl-C is not heard: what the first one has begun to take away goes whole."""
_unfinished: list[None] = []  # an entry for everything that has to go when the run is stopped; signals are global too


class Hold:
    """Stops that were noted; `hear` is where they are heard: in no lock, with nothing half done."""

    def __init__(self) -> None:
        self._noted: list[int] = []
        self._before: dict[int, Any] = {}

    def hear(self) -> None:
        """Lets whoever was asked before hear what was noted: mostly as KeyboardInterrupt."""
        noted, self._noted = self._noted, []
        for number in dict.fromkeys(noted):
            signal.signal(number, self._before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._note)

    def take(self) -> None:
        """Notes stops from here on."""
        self._before = _handle(self._note)

    def give_back(self) -> None:
        """Notes no more, and lets hear what was noted."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(self._noted):
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append(number)


@contextmanager
def held() -> Iterator[Hold]:
    """Inside, a stop is noted, and heard at the end (or where it is asked for): what comes or goes here does so whole.

    Locks are safe inside: a KeyboardInterrupt in the midst of Python's own code for conditions leaves them locked.
    """
    hold = Hold()
    if threading.current_thread() is not threading.main_thread():
        yield hold  # signals are heard in the main thread alone
        return
    hold.take()
    try:
        yield hold
    finally:
        hold.give_back()


@contextmanager
def unfinished() -> Iterator[None]:
    """Inside, there is something that must go if the run is stopped: it cannot just end."""
    _unfinished.append(None)
    try:
        yield
    finally:
        _unfinished.pop()


class Heard:
    """How a command hears a stop: as KeyboardInterrupt, once; `number` is the signal's, None if there was none.

    While modules are imported and nothing is unfinished the process just ends: libraries make all sorts of errors of a
    KeyboardInterrupt in their midst. Another stop is heard `patience` seconds (`PATIENCE`) after one at the earliest.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.number: int | None = None
        self._patience = PATIENCE if patience is None else patience
        self._at: float | None = None

    @property
    def code(self) -> int:
        """The exit code of what was stopped."""
        return 128 + (self.number or signal.SIGINT)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        now, self.number = time.monotonic(), self.number or number
        if self._at is None and not _unfinished and _importing(frame):
            with suppress(OSError):
                os.write(2, f"interrupted: {NOTHING_LEFT}\n".encode())
            os._exit(self.code)
        if self._at is None or now - self._at > self._patience:
            self._at = now
            raise KeyboardInterrupt


@contextmanager
def heard() -> Iterator[Heard]:
    """Inside, what stops the run is heard in one way. Signals that are ignored stay so (`nohup`, a shell's jobs)."""
    stop = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = _handle(stop.hear, all_of_them=False)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop.hear:
                signal.signal(number, handler)


def _handle(handler: Callable[[int, FrameType | None], Any], *, all_of_them: bool = True) -> dict[int, Any]:
    """Puts a handler in place; those that were there before, by signal."""
    kept = (None,) if all_of_them else (None, signal.SIG_IGN)  # None: not Python's to put back
    before: dict[int, Any] = {number: old for number in STOPS if (old := signal.getsignal(number)) not in kept}
    for number in before:
        signal.signal(number, handler)
    return before


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
