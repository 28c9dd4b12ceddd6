"""Runs the program: its streams, its signals, its exit codes. Imports no torch."""

import errno
import gc
import io
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, TextIO

from taskmerge.errors import BadFile, BadOutput, Interrupted, TaskmergeError, told
from taskmerge.stops import NOTHING_LEFT, Heard, heard

COMPLETION = "_TASKMERGE_COMPLETE"
INTERRUPTED = 130
BROKEN_PIPE = 141
INTERNAL = 1
SELDOM = (50_000, 50, 50)  # imports make objects that stay: looking for cycles among them is a tenth of torch's import
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program and ends the process with its exit code."""
    with heard() as stop:
        try:
            code = _main(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:  # before or after the command itself
            code = stop.code
        os._exit(code)  # all files are closed; torch's own teardown would cost half a second and 130 MB more


def _main(arguments: Sequence[str]) -> int:
    gc.set_threshold(*SELDOM)
    if COMPLETION in os.environ:
        _complete()
    if sys.stdout is None:  # closed by the caller: `>&-`
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no result is lost to a terminal that lacks a sign
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # grids and shards are many files
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _complete() -> None:
    """Answers a shell that completes a line, or asks for its script: `_TASKMERGE_COMPLETE=source_bash taskmerge`."""
    import_module("taskmerge.cli.commands").load()
    import_module("typer.completion").completion_init()  # registers the shells
    import_module("taskmerge.cli.program").app(prog_name="taskmerge")  # ends the process


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; every error becomes one message on stderr and an exit code."""
    debug = "--debug" in arguments
    with heard() as stop:
        try:
            return _command(arguments)
        except Interrupted as error:
            return _say(error, error.message, stop.code, debug, kind="interrupted")
        except TaskmergeError as error:
            return _say(error, error.message, error.exit_code, debug)
        except (BrokenPipeError, SystemExit):  # the argument parser exits by itself when the reader has gone
            _give_up_stdout()
            return BROKEN_PIPE
        except MemoryError as error:
            hint = "allow less at a time with --max-memory or --threads 1"
            return _say(error, f"memory ran out\nhint: {hint}", 5, debug)
        except (KeyboardInterrupt, Exception) as error:
            return _ended(error, stop, debug)


def homes(arguments: Sequence[str]) -> list[str]:
    """The words with `~/` as the user's home where a shell leaves it: in `--base=~/x`, `name=~/x` and quoted globs."""
    return [_home(word) for word in arguments]


def _home(word: str) -> str:
    name, equals, path = word.rpartition("=") if not word.startswith("~/") else ("", "", word)
    return f"{name}{equals}{os.path.expanduser(path)}" if path.startswith("~/") else word


def _command(arguments: Sequence[str]) -> int:
    """Loads and carries out the command. Everything is imported here, where Ctrl-C is heard already."""
    _without_temporary_folder()
    import_module("taskmerge.cli.commands").load(arguments)
    one_voice = import_module("taskmerge.cli.together").one_voice
    with one_voice(arguments):
        app = import_module("taskmerge.cli.program").app
        outcome = app(args=homes(arguments), prog_name="taskmerge", standalone_mode=False)
        sys.stdout.flush()
    if outcome == INTERRUPTED:  # Typer turns Ctrl-C into this status
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


def _without_temporary_folder() -> None:
    """Where a machine has no place for temporary files, libraries that ask for one when imported get an answer."""
    with suppress(OSError):
        tempfile.gettempdir()
        return
    tempfile.tempdir = os.curdir


def _ended(error: BaseException, stop: Heard, debug: bool) -> int:
    """The exit code of what ended neither well nor by an error of our own, and its message."""
    aborted = type(error).__name__ == "Abort"
    if aborted and isinstance(error.__cause__, EOFError):  # Typer takes the end of any file for Ctrl-D
        return _defect(error.__cause__, debug)
    if isinstance(error, KeyboardInterrupt) or aborted or stop.number is not None:
        return _say(error, NOTHING_LEFT, stop.code, debug=False, kind="interrupted")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        _give_up_stdout()
        return _say(error, f"the output cannot be written: {error.strerror}", BadOutput.exit_code, debug)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}\nhint: check path and permissions"
        return _say(error, message, BadFile.exit_code, debug)
    if hasattr(error, "format_message"):  # the argument parser's own complaints
        return _usage(error, debug)
    return _defect(error, debug)


def _defect(error: BaseException, debug: bool) -> int:
    """What nobody thought of is a defect of ours: one message, the traceback on request."""
    hint = "this is a defect in taskmerge; run again with --debug and report it"
    return _say(error, f"{type(error).__name__}: {error}\nhint: {hint}", INTERNAL, debug)


def _give_up_stdout() -> None:
    """What is still buffered goes nowhere: the interpreter flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: Any, debug: bool) -> int:
    """A complaint of the argument parser; without arguments it is the help page."""
    context = getattr(error, "ctx", None)
    if not debug and type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return int(error.exit_code)
    command = context.command_path if context else "taskmerge"
    return _say(error, f"{error.format_message()}\nhint: see `{command} --help`", int(error.exit_code), debug)


def _say(error: BaseException, message: str, code: int, debug: bool, *, kind: str = "error") -> int:
    """The one message on stderr, of the process that failed first where there are several."""
    from taskmerge.cli.together import speaks
    from taskmerge.launched import told as people_told

    if not speaks(error, message, code):
        return code
    if debug:
        traceback.print_exception(error)
    complaint, _, hint = message.partition("\nhint: ")
    with suppress(OSError):  # nobody can be told
        print(f"{kind}: {told(complaint)}", file=sys.stderr)
        if hint:
            print(f"hint: {told(hint)}", file=sys.stderr)
    people_told()
    return code
