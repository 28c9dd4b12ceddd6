"""Runs the program: its streams, its signals, its exit codes. Imports no torch."""

import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, TextIO

import typer

from taskmerge.cli.commands import load
from taskmerge.cli.program import app
from taskmerge.cli.together import one_voice, speaks
from taskmerge.errors import BadFile, BadOutput, Interrupted, TaskmergeError, told
from taskmerge.launched import told as people_told

COMPLETION = "_TASKMERGE_COMPLETE"
INTERRUPTED = 130
BROKEN_PIPE = 141
INTERNAL = 1
SELDOM = (50_000, 50, 50)  # imports make objects that stay: looking for cycles among them is a tenth of torch's import
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program and ends the process with its exit code."""
    gc.set_threshold(*SELDOM)
    if COMPLETION in os.environ:
        _complete()
    if sys.stdout is None:  # closed by the caller: `>&-`
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no result is lost to a terminal that lacks a sign
    code = run(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all files are closed; torch's own teardown would cost half a second and 130 MB more


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _complete() -> None:
    """Answers a shell that completes a line, or asks for its script: `_TASKMERGE_COMPLETE=source_bash taskmerge`."""
    load()
    import_module("typer.completion").completion_init()  # registers the shells
    app(prog_name="taskmerge")  # ends the process


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; every error becomes one message on stderr and an exit code."""
    debug = "--debug" in arguments
    load(arguments)
    try:
        with one_voice(arguments):
            outcome = app(args=list(arguments), prog_name="taskmerge", standalone_mode=False)
            sys.stdout.flush()
        if outcome == INTERRUPTED:  # Typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        return outcome if isinstance(outcome, int) else 0
    except Interrupted as error:
        return _say(error, error.message, error.exit_code, debug, kind="interrupted")
    except TaskmergeError as error:
        return _say(error, error.message, error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # Typer takes the end of any file for Ctrl-D
            return _defect(error.__cause__, debug)
        return _say(error, "no unfinished output is left", INTERRUPTED, debug=False, kind="interrupted")
    except (BrokenPipeError, SystemExit):  # the argument parser exits by itself when the reader has gone
        _give_up_stdout()
        return BROKEN_PIPE
    except MemoryError as error:
        return _say(error, "memory ran out\nhint: allow less at a time with --max-memory or --threads 1", 5, debug)
    except Exception as error:
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
