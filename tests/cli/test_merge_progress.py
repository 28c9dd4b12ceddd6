"""Progress of merges where stderr is no terminal: a line now and then, on stderr alone, none with --quiet."""

import re
from pathlib import Path

import pytest
from merge_cases import run

from taskmerge.cli import meter
from taskmerge.cli.meter import Bar

Files = dict[str, Path]


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


def test_lines_say_how_far_and_how_long(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("merging", quiet=False) as bar:
        clock.now += 4
        bar.update(100, 1000)  # too early
        clock.now += 2
        bar.update(250, 1000)
        clock.now += 1
        bar.update(300, 1000)  # too early again
        clock.now += 113
        bar.update(500, 1000)
    assert capsys.readouterr().err.splitlines() == ["merging: 25%, 0:18 left", "merging: 50%, 2:00 left"]


def test_the_time_before_the_work_does_not_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("merging", quiet=False)
    clock.now += 1000
    with bar:
        clock.now += 10
        bar.update(1, 2)
    assert capsys.readouterr().err.splitlines() == ["merging: 50%, 0:10 left"]


def test_work_that_says_when_it_begins_is_measured_from_there(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("sweeping", quiet=False) as bar:
        clock.now += 100  # inputs are opened
        bar.update(0, 10)
        clock.now += 6
        bar.update(2, 10)
    assert capsys.readouterr().err.splitlines() == ["sweeping: 20%, 0:24 left"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["merge", "*.safetensors", "-m", "ties"], "merging"),
        (["merge", "*.safetensors", "--rank", "1,2"], "merging"),
        (["vectors", "cars.safetensors", "--base", "base.safetensors"], "subtracting"),
    ],
)
def test_commands_print_such_lines_to_stderr_alone(
    experts: Files, monkeypatch: pytest.MonkeyPatch, command: list[str], says: str
) -> None:
    monkeypatch.setattr(meter, "EVERY", 0)
    loud, quiet = run(*command, "--overwrite"), run(*command, "--overwrite", "--quiet")
    assert (loud.code, quiet.code) == (0, 0)
    lines = [line for line in loud.err.splitlines() if line.startswith(f"{says}: ")]
    assert lines
    assert all(re.fullmatch(rf"{says}: \d+%, \d+:\d\d left", line) for line in lines)
    assert lines[-1] == f"{says}: 100%, 0:00 left"
    assert quiet.err == ""
    assert loud.out == quiet.out


def test_a_short_merge_says_no_line(experts: Files) -> None:
    assert "left" not in run("merge", "*.safetensors").err
