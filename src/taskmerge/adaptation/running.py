"""A run from its state to its end: trace, saved states, the best state by agreement, and what diagnostics look at."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from taskmerge.adaptation.held_out import agreements
from taskmerge.adaptation.loop import Adaptation
from taskmerge.adaptation.state import FILE, AdaptState, load_state, save_state
from taskmerge.adaptation.trace import StepRecord, read_trace
from taskmerge.errors import BadFile, BadOutput, UsageError, listed
from taskmerge.processes import Group

TRACE, STATE, BEST = "trace.jsonl", "state", "best"
SAVED_EVERY = 20.0
"""Seconds between two saved states: what a kill loses at most."""
Heard = Callable[[StepRecord, int], None]
"""Called after every update with its record and the number of updates in all."""
Watch = Callable[[int], Mapping[str, Any]]
"""Looks at the model after so many updates, with labels, and says what it found: for curves, never for a choice."""
Interruptible = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""A context that says whether to stop between two updates, and, if so, raises KeyboardInterrupt at its end."""


@contextmanager
def at_once() -> Iterator[Callable[[], bool]]:
    """What interrupts, interrupts where it is."""
    yield lambda: False


@dataclass(frozen=True)
class Following:
    """Agreement on held-out items, measured every so many updates on these places by task; the best state is kept."""

    every: int
    held: Mapping[str, Tensor]


@dataclass
class Running:
    """One adaptation in its folder. `about` is what it belongs to: a state of another one is refused.

    While it makes updates it is `interruptible`: what they came to is saved before that ends. Of several processes the
    first one writes.
    """

    adaptation: Adaptation
    folder: Path
    about: Mapping[str, object]
    following: Following | None = None
    watch: Watch | None = None
    watch_every: int = 0
    heard: Heard | None = None
    interruptible: Interruptible = at_once
    records: list[StepRecord] = field(default_factory=list)
    best: AdaptState | None = None
    final: Mapping[str, float] = field(default_factory=dict)

    def carry_out(self, *, resume: bool) -> None:
        """Makes all updates that are left, and leaves the model as the state that counts forms it.

        Raises BadOutput where the trace or a state cannot be written: what was saved before is still there.
        """
        if resume:
            self._resume()
        self.group.barrier()  # nothing is written before all have read
        with _writable(self.folder / TRACE), self._trace() as trace:
            if not resume:
                self._tell(trace, self._looked(self.adaptation.start()))
                self._save(trace)
            with self.interruptible() as asked:
                stopped = self._updates(trace, asked)
                self._save(trace)
            if stopped:  # another process was asked
                raise KeyboardInterrupt
        if self.best is not None:
            self.adaptation.restore(self.best)
        self.adaptation.settle()

    def _updates(self, trace: IO[str], asked: Callable[[], bool]) -> bool:
        """All updates that are left, or those until somebody asked a process to stop: whether that was so."""
        saved = time.monotonic()
        for record in self.adaptation.updates():
            self._tell(trace, self._looked(record))
            if not self.group.all(not asked()):
                return True
            if time.monotonic() - saved > SAVED_EVERY:
                self._save(trace)
                saved = time.monotonic()
        return False

    def conclude(self) -> None:
        """Measures agreement once more, of the model that is written: heads may have been fitted since."""
        if self.following is not None:
            self.final = self._agreements(self.following)

    @property
    def chosen(self) -> StepRecord | None:
        """The update whose state is kept, where agreement was followed; the first of equals."""
        measured = [record for record in self.records if record.agreement is not None]
        return max(measured, key=lambda record: record.agreement or 0.0) if measured else None

    @property
    def group(self) -> Group:
        """The processes that carry it out."""
        return self.adaptation.setting.group

    def _trace(self) -> IO[str]:
        """The trace, cut behind what the saved state has seen."""
        if not self.group.is_first:
            return Path(os.devnull).open("a", encoding="utf-8")
        (self.folder / TRACE).write_text("".join(record.line() for record in self.records), encoding="utf-8")
        return (self.folder / TRACE).open("a", encoding="utf-8")

    def _tell(self, trace: IO[str], record: StepRecord) -> None:
        trace.write(record.line())
        self.records.append(record)
        if self.heard is not None:
            self.heard(record, self.adaptation.total)

    def _agreements(self, following: Following) -> dict[str, float]:
        setting = self.adaptation.setting
        return agreements(self.adaptation.sides, following.held, setting.device, setting.workers, self.group)

    def _looked(self, record: StepRecord) -> StepRecord:
        """The record with what is measured beside it, where that is due: agreement, diagnostics."""
        update, last = record.update, record.update == self.adaptation.total
        following = self.following
        if following is not None and (update % following.every == 0 or last):
            self.adaptation.settle()
            measured = self._agreements(following)
            before = max((own.agreement or 0.0 for own in self.records if own.held_out), default=-1.0)
            record = replace(record, held_out=measured)
            if (record.agreement or 0.0) > before:
                self.best = self.adaptation.snapshot()
        if self.watch is not None and (update % self.watch_every == 0 or last):
            self.adaptation.settle()
            record = replace(record, watched=self.watch(update))
        return record

    def _save(self, trace: IO[str]) -> None:
        """The state, and the best one, behind the trace that led there."""
        if not self.group.is_first:
            return
        trace.flush()
        os.fsync(trace.fileno())
        if self.best is not None:
            save_state(self.best, self.folder / STATE / BEST, self.about)
        save_state(self.adaptation.snapshot(), self.folder / STATE, self.about)

    def _resume(self) -> None:
        """Continues from the saved state, if it is of this very run."""
        state, about = load_state(self.folder / STATE)
        other = sorted(name for name in {*about, *self.about} if about.get(name) != self.about.get(name))
        if other:
            what = f"the unfinished run there is another one: {listed(other)} differ"
            hint = "resume it with the options it was started with, or start again with --overwrite"
            raise UsageError(what, where=str(self.folder), hint=hint)
        self._check(state, self.folder / STATE)
        self.records = read_trace(self.folder / TRACE, state.update)
        if any(record.held_out for record in self.records):
            self.best, _ = load_state(self.folder / STATE / BEST)
            self._check(self.best, self.folder / STATE / BEST)
        self.adaptation.restore(state)

    def _check(self, state: AdaptState, folder: Path) -> None:
        """Raises BadFile for a state that says it is of this run and is not."""
        late = f"it is of update {state.update} of {self.adaptation.total}"
        what = late if state.update > self.adaptation.total else self.adaptation.optimised.misfit(state)
        if what:
            hint = "start again with --overwrite"
            raise BadFile(f"is no state of this run: {what}", where=str(folder / FILE), hint=hint)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """A full disk, or what else keeps a file from being written, as BadOutput."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free space, then add --resume" if full else "choose another output with -o"
        raise BadOutput(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
