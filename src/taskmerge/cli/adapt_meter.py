"""Progress of an adaptation on stderr: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from taskmerge.cli import adapt_phrases
from taskmerge.cli.meter import EVERY, Bar
from taskmerge.cli.show import duration, say

if TYPE_CHECKING:
    from taskmerge.adaptation.trace import StepRecord, TaskRecord

FEW = 4
"""So many tasks have their losses told one by one where there is room."""
LONG = 600.0
"""Seconds from which on it is said once what would shorten a run."""


def _columns() -> Sequence[Any]:
    from rich.progress import BarColumn, TextColumn

    return BarColumn(bar_width=12), TextColumn("{task.fields[pace]}")


class AdaptMeter:
    """Hears every update and what goes on besides, to be used as a context; says nothing if `quiet`.

    `label` stands before everything that is told. `shorter` says what would shorten a long run, `masked` what masks are
    of.
    """

    def __init__(self, quiet: bool, label: str = "") -> None:
        self._quiet, self._label = quiet, label
        self.shorter: Sequence[str] = ()
        self.masked = "components"
        self._bar = Bar("opening", quiet, _columns)
        self._activity, self._shown = "opening", True
        self._told = time.monotonic()
        self._began = (-1, 0.0)  # update and time of the first record of this process
        self._flips = 0
        self._latest: dict[str, TaskRecord] = {}

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, at)

    def doing(self, activity: str) -> None:
        """What begins now: reading, teachers, learning, writing."""
        self._activity, self._began, self._flips, self._latest = activity, (-1, 0.0), 0, {}
        if self._quiet:
            return
        if self._bar.shown:
            self._bar.show(0, None, description=self._label + activity, pace="")
        elif time.monotonic() - self._told >= EVERY:
            self._tell(activity)

    def heard(self, record: "StepRecord", total: int) -> None:
        """One update of `total`; the first record is of the start, or of the first update after --resume."""
        if self._quiet or not total:
            return
        now = time.monotonic()
        if self._began[0] < 0:
            self._began = record.update, now
        self._flips += record.flips
        self._latest.update(record.tasks)
        self._advise(record.update, total, now)
        if self._bar.shown:
            parts = [f"{record.update:,}/{total:,}", *self._state(record, named=False)]
            pace = ", ".join(parts + self._pace(record.update, total, now))
            self._bar.show(record.update, total, description=self._label + self._activity, pace=pace)
        elif now - self._told >= EVERY:
            told = ", ".join(self._state(record, named=True) + self._pace(record.update, total, now))
            self._tell(f"update {record.update:,} of {total:,}{': ' if told else ''}{told}")

    def _tell(self, text: str) -> None:
        self._told = time.monotonic()
        say(self._label + text)

    def _advise(self, update: int, total: int, now: float) -> None:
        """Says once, when a pace is known, what would shorten a run that has long to go."""
        rate = self._rate(update, now)
        if not self.shorter or rate is None or now - self._began[1] < EVERY:
            return
        if (total - update) / rate > LONG:
            say(f"note: about {duration((total - update) / rate)} left; shorter: {'; '.join(self.shorter)}")
        self.shorter = ()

    def _state(self, record: "StepRecord", *, named: bool) -> list[str]:
        """How it goes: the loss of each task's latest batch, what filter and masks keep, flips since the start."""
        told = _losses(self._latest, named=named)
        kept = [own.kept for own in self._latest.values()]
        if kept and min(kept) < 1:
            told.append(f"kept {100 * fmean(kept):.0f}%")
        if record.kept_components is not None:
            told.append(f"{self.masked} {100 * record.kept_components:.1f}%")
            told += [f"{self._flips:,} flips"] if self.masked != adapt_phrases.ENTRIES else []
        return told

    def _pace(self, update: int, total: int, now: float) -> list[str]:
        """Updates a second and time left."""
        rate = self._rate(update, now)
        return [] if rate is None else [f"{rate:.3g}/s", f"{duration((total - update) / rate)} left"]

    def _rate(self, update: int, now: float) -> float | None:
        """Updates a second since the first record that was heard."""
        began, at = self._began
        return (update - began) / (now - at) if update > began and now > at else None


def _losses(latest: Mapping[str, "TaskRecord"], *, named: bool) -> list[str]:
    """The mean loss, and each task's where these are few."""
    losses = {name: own.loss for name, own in latest.items() if own.loss is not None}
    if not losses:
        return []
    each = ", ".join(f"{name} {loss:.3g}" for name, loss in losses.items())
    return [f"loss {fmean(losses.values()):.3g}" + (f" ({each})" if named and 1 < len(losses) <= FEW else "")]
