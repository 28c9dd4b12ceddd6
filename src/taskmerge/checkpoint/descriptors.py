"""File descriptors that several threads use at once: closing waits for the uses under way."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path


class Descriptor:
    """One open file descriptor. A closed number could be given to another file, so `close` waits for its users."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._users: list[int] = []  # threads
        self._closed = False
        self._idle = threading.Condition()

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor's number, valid inside the block; ValueError once closed."""
        with self._idle:
            if self._closed:
                raise ValueError("I/O operation on closed file")
            self._users.append(threading.get_ident())
        try:
            yield self._number
        finally:
            with self._idle:
                self._users.remove(threading.get_ident())
                self._idle.notify_all()

    def close(self) -> None:
        """Wait for the uses under way, then close; a second call does nothing."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: _only_mine(self._users))
            os.close(self._number)


def _only_mine(users: list[int]) -> bool:
    """Whether no other thread is at it: what this one was at was interrupted, or it would not be here."""
    return all(user == threading.get_ident() for user in users)


class Shelf:
    """Files that several threads write: opened when used, so many at most at a time, closed when done."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._open: dict[Path, int] = {}  # the one that was used last comes last
        self._users: dict[Path, list[int]] = {}  # threads
        self._closed = False
        self._idle = threading.Condition()

    @contextmanager
    def use(self, path: Path) -> Iterator[int]:
        """The descriptor's number, valid inside the block; ValueError once all is closed.

        Raises OSError where the file cannot be opened, or another that makes room for it cannot be closed.
        """
        with self._idle:
            if self._closed:
                raise ValueError("I/O operation on closed file")
            number = self._number(path)
        try:
            yield number
        finally:
            with self._idle:
                self._users[path].remove(threading.get_ident())
                self._idle.notify_all()

    def close(self, path: Path) -> None:
        """Close one file, when nobody uses it: what was written late and got lost is an OSError here at last."""
        with self._idle:
            self._idle.wait_for(lambda: _only_mine(self._users.get(path, [])))
            number = self._open.pop(path, None)
            if number is not None:
                os.close(number)

    def close_all(self) -> None:
        """Wait for the uses under way, then close everything for good; a second call does nothing."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: all(map(_only_mine, self._users.values())))
            while self._open:
                _, number = self._open.popitem()
                with suppress(OSError):  # it was closed before if it counted
                    os.close(number)

    def _number(self, path: Path) -> int:
        number = self._open.pop(path, None)
        if number is None:
            idle = [other for other in self._open if not self._users[other]]
            for other in idle[: max(0, len(self._open) - self._most + 1)]:
                os.close(self._open.pop(other))
            number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._open[path] = number
        self._users.setdefault(path, []).append(threading.get_ident())
        return number


class Shelved:
    """One file of a shelf, to be used like a descriptor."""

    def __init__(self, shelf: Shelf, path: Path) -> None:
        self.path = path
        self._shelf = shelf

    def use(self) -> AbstractContextManager[int]:
        """The descriptor's number, valid inside the block."""
        return self._shelf.use(self.path)

    def close(self) -> None:
        """Close it until it is used again; raises OSError."""
        self._shelf.close(self.path)
