"""File descriptors that several threads use at once: closing waits for the uses under way."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Descriptor:
    """One open file descriptor. A closed number could be given to another file, so `close` waits for its users."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor's number, valid inside the block; ValueError once closed."""
        with self._idle:
            if self._closed:
                raise ValueError("I/O operation on closed file")
            self._users += 1
        try:
            yield self._number
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """Wait for the uses under way, then close; a second call does nothing."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._users == 0)
            os.close(self._number)
