"""Progress of an evaluation: samples a second and time left; a bar on a terminal, a line now and then otherwise."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from taskmerge.cli.show import say

EVERY = 5.0
"""Seconds between two lines where stderr is no terminal."""


class Meter:
    """Use as a context; `update` is what `evaluate` calls. Says nothing if `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._spent = 0.0  # seconds of encoding, reading left out
        self._uncounted = 0  # samples whose time is not in them: those before the first call
        self._last: float | None = None
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("reading", total=None, pace="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None, what: str) -> None:
        """`done` of `total` samples are encoded (None: data is being read), and `what` is under way."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._last is None:
            self._uncounted = done
        elif total is not None:
            self._spent += now - self._last
        self._last = now
        pace = "" if total is None else _pace(done - self._uncounted, total - self._uncounted, self._spent)
        if self._bar is not None:
            self._bar.update(self._task, description=what, completed=done, total=total, pace=pace)
        elif now - self._told >= EVERY:
            self._told = now
            counted = f"{what}: {done:,} of {total:,} samples" if total is not None else what
            say(f"{counted}, {pace}" if pace else counted)


def _pace(done: int, total: int, seconds: float) -> str:
    """`1,200/s, 0:35 left`."""
    if seconds <= 0 or not done:
        return ""
    rate = done / seconds
    minutes, rest = divmod(round((total - done) / rate), 60)
    return f"{rate:,.0f}/s, {minutes}:{rest:02d} left"
