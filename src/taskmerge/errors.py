"""The one family of exceptions: what happened, where, what to do, and the exit code it stands for."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

LONGEST_LINE = 2_000
"""Characters of one line of a message."""
MOST_LINES = 60
LONGEST_NAME = 200
"""Characters of a name for which a similar one is looked for."""
Way = Mapping[str, object]
"""Keywords of a merge that get past an error; lists add to those that were given."""


class TaskmergeError(Exception):
    """Base of every error that taskmerge raises on purpose.

    `what` says what happened, `where` names the file, tensor, line or option, `hint` says what to do about it. `ways`
    are those of the hint's options that a program may try, the one that loses least first.
    `exit_code` is the status with which the command line ends. The three hold names and values of files that anybody
    may have written: they are shown here as `told` shows them, so no error is longer or other than a text.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, ways: Sequence[Way] = ()
    ) -> None:
        self.what = told(what)
        self.where = where and told(where)
        self.hint = hint and told(hint)
        self.ways = tuple(ways)
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The error as one text: `where: what`, and the hint on a line of its own."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\nhint: {self.hint}" if self.hint else head


class UsageError(TaskmergeError):
    """Wrong usage, option, recipe or suite."""

    exit_code = 2


class BadFile(TaskmergeError):
    """An input cannot be read, or its data is bad."""

    exit_code = 3


class Mismatch(TaskmergeError):
    """Inputs that do not fit together."""

    exit_code = 4


class NotEnough(TaskmergeError):
    """Memory, disk or device is too small; found before the start."""

    exit_code = 5


class BadOutput(TaskmergeError):
    """The output exists already or cannot be written."""

    exit_code = 6


class BadNumber(TaskmergeError):
    """A number in a result went wrong: NaN, infinity, overflow."""

    exit_code = 7


class Missed(TaskmergeError):
    """A threshold or a baseline was missed."""

    exit_code = 8


class TaskmergeWarning(UserWarning):
    """What a Python function warns of where nobody else can hear it."""


class Interrupted(TaskmergeError):
    """Ctrl-C in work of which something is kept that can be continued."""

    exit_code = 130


def told(text: str) -> str:
    """A text of any length as a message of some: long lines lose their middle, many lines their last ones.

    Lines stay lines; other control characters are shown, not obeyed.
    """
    lines = text.split("\n", MOST_LINES)
    if len(lines) > MOST_LINES:
        lines[-1] = f"and {lines[-1].count(chr(10)) + 1:,} lines more"
    return "\n".join(plain(_shortened(line)) for line in lines)


def plain(text: str) -> str:
    """One line for a terminal: what a file's names hold of control characters is shown, not obeyed."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _shortened(line: str) -> str:
    half = LONGEST_LINE // 2
    left_out = len(line) - 2 * half
    return line if left_out <= 0 else f"{line[:half]} [{left_out:,} characters] {line[-half:]}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to a misspelt one, or None when nothing is close."""
    if len(name) > LONGEST_NAME:
        return None
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> UsageError:
    """The error for a name that is not among `known`, with the nearest one as its hint."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean `{close}`?" if close else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} `{name}`", where=where, hint=hint)


def listed(names: Iterable[str], most: int = 12, *, between: str = ", ", plain: bool = False) -> str:
    """The first `most` names, each in backticks unless `plain`, and how many more there are."""
    known = list(names)
    shown = between.join(name if plain else f"`{name}`" for name in known[:most])
    return shown if len(known) <= most else f"{shown} and {len(known) - most:,} more"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Errors from inside get a place if they have none."""
    try:
        yield
    except TaskmergeError as error:
        if error.where is not None:
            raise
        raise type(error)(error.what, where=where, hint=error.hint, ways=error.ways) from error
