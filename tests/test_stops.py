"""What ends a run from outside: held off where it must be, heard once, and only where it was not ignored."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmerge import stops
from taskmerge.stops import STOPS, heard, held, unfinished


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    assert {number: signal.getsignal(number) for number in STOPS} == before


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_is_heard_at_the_end_of_what_is_held(number: int) -> None:
    done = []

    def work() -> None:
        with held():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("all")
        done.append("more")

    with heard() as stop, pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert (stop.number, stop.code) == (number, 128 + number)


def test_what_is_held_in_what_is_held_is_heard_at_the_very_end() -> None:
    done = []

    def work() -> None:
        with held():
            with held():
                os.kill(os.getpid(), signal.SIGINT)
            done.append("outer")

    with heard(), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["outer"]


def kill(number: int) -> None:
    """Sends this process a signal, and gives it the time to hear it."""
    os.kill(os.getpid(), number)
    time.sleep(1)


def test_the_first_of_two_signals_gives_the_code_and_the_second_is_not_heard() -> None:
    with heard() as stop:
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.code == 128 + signal.SIGTERM


def test_after_a_while_a_second_one_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "PATIENCE", 0.0)
    with heard():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                kill(signal.SIGINT)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_that_is_ignored_stays_so(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with heard() as stop, held():
            os.kill(os.getpid(), number)
        assert stop.number is None
    finally:
        signal.signal(number, before)


def test_an_error_inside_what_is_held_is_not_lost() -> None:
    with pytest.raises(ValueError, match="inside"), held():
        raise ValueError("inside")


def test_other_threads_hear_no_signals() -> None:
    done = []

    def work() -> None:
        with heard(), held(), unfinished():
            done.append("all")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all"]


IMPORTING = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nraise SystemError('what a library makes of it')"


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("begun", [True, False])
def test_while_a_module_is_imported_the_process_just_ends_unless_something_must_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    (tmp_path / "imported.py").write_text(IMPORTING)
    monkeypatch.syspath_prepend(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            with heard():
                if not begun:
                    import imported
                with unfinished():
                    import imported  # noqa: F401
        except KeyboardInterrupt:
            os._exit(7)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (7 if begun else 128 + signal.SIGTERM)
