"""Progress of an evaluation where stderr is no terminal: lines now and then, with an honest pace."""

import pytest

from taskmerge.cli import meter
from taskmerge.cli.meter import Meter


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(meter, "time", found)
    return found


def test_reading_is_no_part_of_the_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(quiet=False) as shown:
        clock.now += 20  # imports
        shown.update(0, None, "reading digits")
        clock.now += 30
        shown.update(0, None, "reading shapes")
        clock.now += 10
        shown.update(100, 1000, "base")
    assert capsys.readouterr().err.splitlines() == [
        "reading digits", "reading shapes", "base: 100 of 1,000 samples, 10/s, 1:30 left"
    ]  # fmt: skip


def test_what_was_before_the_first_call_is_no_part_of_it_either(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Meter(quiet=False) as shown:
        clock.now += 50  # imports, and a batch
        shown.update(100, 1100, "base")
        clock.now += 10
        shown.update(300, 1100, "base")
    assert capsys.readouterr().err.splitlines() == [
        "base: 100 of 1,100 samples", "base: 300 of 1,100 samples, 20/s, 0:40 left"
    ]  # fmt: skip


def test_lines_are_rare_and_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(quiet=False) as shown:
        for done in range(110):
            clock.now += 0.1
            shown.update(done, 110, "base")
    assert len(capsys.readouterr().err.splitlines()) == 2
    with Meter(quiet=True) as shown:
        clock.now += 100
        shown.update(1, 2, "base")
    assert capsys.readouterr().err == ""
