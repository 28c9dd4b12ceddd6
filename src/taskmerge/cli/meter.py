"""Progress on stderr: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from taskmerge.cli.show import say

EVERY = 5.0
"""Seconds between two lines where stderr is no terminal."""


def _percent() -> Sequence[Any]:
    from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn

    return BarColumn(), TaskProgressColumn(), TimeRemainingColumn()


def _counted() -> Sequence[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    return BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")


class Bar:
    """A bar on a terminal, a line now and then elsewhere, nothing if `quiet`; to be used as a context."""

    def __init__(self, title: str, quiet: bool, columns: Callable[[], Sequence[Any]] = _percent) -> None:
        self.shown = not quiet and sys.stderr.isatty()
        self._title, self._quiet, self._columns = title, quiet, columns
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._began = self._told = time.monotonic()
        if self.shown:
            from rich.console import Console
            from rich.progress import Progress, TextColumn

            title = TextColumn("{task.description}")
            self._progress = Progress(title, *self._columns(), console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=None, pace="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.shown:
            self._progress.stop()

    def show(self, done: int, total: int | None, **more: Any) -> None:
        """`done` of `total` (None: nobody knows) on the bar."""
        if total is None:
            self._progress.tasks[self._task].total = None  # an update takes None for no change
        self._progress.update(self._task, completed=done, total=total, **more)

    @property
    def update(self) -> Callable[[int, int], None] | None:
        """What the engine calls with (parameters done, parameters in all), if anything is to be shown."""
        return None if self._quiet else self.show if self.shown else self._tell

    def _tell(self, done: int, total: int) -> None:
        """A line, if the last is a while ago."""
        now = time.monotonic()
        if done == 0:  # what came before is no measure of what is left
            self._began = now
        if now - self._told >= EVERY and 0 < done <= total:
            self._told = now
            left = (now - self._began) * (total - done) / done
            say(f"{self._title}: {100 * done / total:.0f}%, {_clock(left)} left")


class Meter:
    """Samples a second and time left of an evaluation, to be used as a context; says nothing if `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = Bar("reading", quiet, _counted)
        self._spent = 0.0  # seconds of encoding, reading left out
        self._uncounted = 0  # samples whose time is not in them: those before the first call
        self._last: float | None = None
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, at)

    def update(self, done: int, total: int | None, activity: str) -> None:
        """What `evaluate` calls: `done` of `total` samples are encoded (None: data is being read), and what goes on."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._last is None:
            self._uncounted = done
        elif total is not None:
            self._spent += now - self._last
        self._last = now
        pace = "" if total is None else _pace(done - self._uncounted, total - self._uncounted, self._spent)
        if self._bar.shown:
            self._bar.show(done, total, description=activity, pace=pace)
        elif now - self._told >= EVERY:
            self._told = now
            counted = f"{activity}: {done:,} of {total:,} samples" if total is not None else activity
            say(f"{counted}, {pace}" if pace else counted)


def _pace(done: int, total: int, seconds: float) -> str:
    """`1,200/s, 0:35 left`."""
    if seconds <= 0 or not done:
        return ""
    rate = done / seconds
    return f"{rate:,.0f}/s, {_clock((total - done) / rate)} left"


def _clock(seconds: float) -> str:
    """`0:35`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
