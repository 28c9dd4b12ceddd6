"""One command line in several processes: which commands know how, which process speaks, what stops them."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

from taskmerge.errors import UsageError
from taskmerge.launched import WHERE, Ended, await_told, first_to_end, seat
from taskmerge.stops import Heard

SPREAD = ("adapt",)
"""Commands whose work several processes can share."""
STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def one_voice(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, only the first of several processes is heard, and what stops them is KeyboardInterrupt, once.

    torchrun passes Ctrl-C on, so that it comes twice, and ends the other processes where one has failed. Raises
    UsageError for commands that work alone.
    """
    here = seat()
    if here.size == 1:
        yield
        return
    _check_command(arguments)
    stop = Heard(math.inf)
    for number in STOPS:
        signal.signal(number, stop.hear)
    try:
        with nullcontext() if here.rank == 0 else _muted():
            yield
    finally:
        _ignore_stops()  # it ends already


@contextmanager
def _muted() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def speaks(error: BaseException, message: str, code: int) -> bool:
    """Whether this process tells people of an error: of several it is the first one to fail, for which others wait."""
    try:
        first = not (isinstance(error, Ended) and error.explained) and first_to_end(message, code)
    except UsageError:  # of an environment that names no process: that is what is to be told
        return True
    if not first:
        await_told()
    return first


def _check_command(arguments: Sequence[str]) -> None:
    named = next((word for word in arguments if not word.startswith("-")), None)
    if named is not None and named not in SPREAD:
        hint = f"run it without torchrun: `taskmerge {named} ...`"
        raise UsageError(f"`{named}` runs in one process", where=WHERE, hint=hint)


def _ignore_stops() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
