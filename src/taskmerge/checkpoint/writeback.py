"""Early writeback: a thread sends written pages to the disk while more are computed, so the last sync is short."""

import os
import threading

from taskmerge.checkpoint.descriptors import Shelved

STEP = 16 * 2**20
"""Bytes written to a file since its last sync after which it is synced again."""


class Writeback:
    """Syncs files in the background. The kernel reports a failed write once, so `finish` raises what it saw."""

    def __init__(self) -> None:
        self._written: dict[Shelved, int] = {}
        self._error: OSError | None = None
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="taskmerge-writeback", daemon=True)
        self._thread.start()

    def wrote(self, file: Shelved, count: int) -> None:
        """Note that `count` bytes were written to a file."""
        with self._wake:
            self._written[file] = self._written.get(file, 0) + count
            if self._written[file] >= STEP:
                self._wake.notify()

    def stop(self) -> None:
        """Wait for the sync under way and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def finish(self) -> None:
        """Stop, and raise the OSError of a sync that failed."""
        self.stop()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (file := self._next()) is not None:
            try:
                with file.use() as number:
                    os.fdatasync(number)
            except OSError as error:
                self._error = error
                return

    def _next(self) -> Shelved | None:
        """A file with enough unsynced bytes, as soon as there is one; None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or max(self._written.values(), default=0) >= STEP)
            if self._stopping:
                return None
            fullest = max(self._written, key=lambda file: self._written[file])
            del self._written[fullest]
            return fullest
