"""Progress of an adaptation where stderr is no terminal, and on one: loss, shares, flips, pace, time left."""

import io
import sys

import pytest

from taskmerge.adaptation.trace import StepRecord, TaskRecord
from taskmerge.cli import adapt_meter, show
from taskmerge.cli.adapt_meter import AdaptMeter
from taskmerge.cli.adapt_phrases import masked
from taskmerge.specs.adapt import AdaptSpec


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(adapt_meter, "time", found)
    return found


def record(update: int, flips: int = 0, components: float | None = None, **losses: float | None) -> StepRecord:
    tasks = {name: TaskRecord(32, 0.75 if loss else 0.0, loss, 0.5, 0.1) for name, loss in losses.items()}
    return StepRecord(update, update, tasks, flips=flips, kept_components=components)


def test_a_line_now_and_then_with_the_latest_loss_of_every_task(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with AdaptMeter(quiet=False) as meter:
        meter.doing("reading items")
        clock.now += 6
        meter.doing("learning")
        meter.heard(record(0), 1000)
        for update in range(1, 9):
            clock.now += 1
            meter.heard(record(update, digits=0.5) if update % 2 else record(update, shapes=0.25), 1000)
    assert capsys.readouterr().err.splitlines() == [
        "learning",
        "update 5 of 1,000: loss 0.375 (digits 0.5, shapes 0.25), kept 75%, 1/s, 17 min left",
    ]


def test_masks_have_their_share_and_their_flips_since_the_start(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with AdaptMeter(quiet=False, label="seed 3: ") as meter:
        meter.heard(record(0, components=1.0), 100)
        clock.now += 2
        meter.heard(record(1, flips=900, components=0.95, digits=1.0), 100)
        clock.now += 4
        meter.heard(record(2, flips=134, components=0.9, digits=1.0), 100)
    told = "seed 3: update 2 of 100: loss 1, kept 75%, components 90.0%, 1,034 flips, 0.333/s, 4 min 54 s left\n"
    assert capsys.readouterr().err == told


def test_relaxed_masks_are_of_entries_and_flip_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with AdaptMeter(quiet=False) as meter:
        meter.masked = masked(AdaptSpec(method="concrete").parts())
        meter.heard(record(0, components=0.5), 100)
        clock.now += 6
        meter.heard(record(2, components=0.45, digits=1.0), 100)
    told = capsys.readouterr().err
    assert ", entries 45.0%, 0.333/s" in told
    assert "components" not in told
    assert "flips" not in told
    assert masked(AdaptSpec(method="adarank").parts()) == "components"


def test_the_pace_of_a_resumed_run_is_its_own(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with AdaptMeter(quiet=False) as meter:
        clock.now += 60  # opening
        meter.heard(record(900, digits=None), 1000)
        clock.now += 5
        meter.heard(record(910, digits=None), 1000)
    assert capsys.readouterr().err.splitlines()[-1] == "update 910 of 1,000: kept 0%, 2/s, 45 s left"


def test_what_would_shorten_a_long_run_is_said_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for total, notes in ((10_000, 1), (100, 0)):
        with AdaptMeter(quiet=False) as meter:
            meter.shorter = ["half the horizon: --iterations 50", "a GPU: --device cuda"]
            for update in range(30):
                meter.heard(record(update, digits=1.0), total)
                clock.now += 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert len(told) == notes
    with AdaptMeter(quiet=True) as meter:
        clock.now += 100
        meter.doing("learning")
        meter.heard(record(1, digits=1.0), 2)
    assert capsys.readouterr().err == ""


def test_a_note_of_a_long_run(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with AdaptMeter(quiet=False) as meter:
        meter.shorter = ["half the horizon: --iterations 50", "a GPU: --device cuda"]
        meter.heard(record(0), 10_000)
        clock.now += 10
        meter.heard(record(10, digits=1.0), 10_000)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "note: about 2 h 46 min left; shorter: half the horizon: --iterations 50; a GPU: --device cuda"


def test_a_terminal_gets_a_bar_that_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with AdaptMeter(quiet=False) as meter:
        meter.doing("reading items")
        meter.heard(record(0), 50)
        meter.heard(record(25, digits=0.5), 50)
        meter.heard(record(50, digits=0.25), 50)
    shown = terminal.getvalue()
    assert "reading items" in shown
    assert "50/50, loss 0.25, kept 75%" in shown
    assert shown.endswith("\x1b[2K"), "the bar's line is cleared"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 ms"), (0.042, "42 ms"), (3.14, "3.1 s"), (59.6, "60 s"), (99, "99 s"), (125, "2 min 5 s"),
     (599, "9 min 59 s"), (1234, "21 min"), (7300, "2 h 2 min")],
)  # fmt: skip
def test_times_for_people(seconds: float, words: str) -> None:
    assert show.duration(seconds) == words
