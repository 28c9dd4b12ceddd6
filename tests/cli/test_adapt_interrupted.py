"""What stops `taskmerge adapt`, and that --resume then ends with the bytes of the run that nothing stopped."""

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from adapt_command_cases import SHORT, adapt, contents, report, suite_here, trace
from merge_cases import refused, run, tree

from taskmerge.adaptation import running
from taskmerge.adaptation.state import load_state
from taskmerge.adaptation.trace import StepRecord
from taskmerge.cli.adapt_meter import AdaptMeter
from taskmerge.cli.interrupts import saved_first
from taskmerge.workflows import adapt_report

OFTEN = """
import taskmerge.adaptation.running as running
running.SAVED_EVERY = 0.0
from taskmerge.cli import app
app.main()
"""
"""The program with a state saved after every update."""
LONG = ("adapt", "-m", "surgery", "--iterations", "150", "--limit", "64", "--no-cache", "--no-scores", "-j", "1")


@pytest.fixture
def tiny(here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a suite of two tasks; a state is saved after every update."""
    monkeypatch.setenv("TASKMERGE_CACHE", str(tmp_path_factory.getbasetemp() / "interrupted-cache"))
    monkeypatch.setattr(running, "SAVED_EVERY", 0.0)
    suite_here(here)
    return here


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Ctrl-C when this update was made."""

    def heard(meter: AdaptMeter, record: StepRecord, total: int) -> None:
        if record.update == update:
            raise KeyboardInterrupt

    monkeypatch.setattr(AdaptMeter, "heard", heard)


def press_at(
    monkeypatch: pytest.MonkeyPatch, update: int, times: int = 1, sent: signal.Signals = signal.SIGINT
) -> None:
    """A signal, that of Ctrl-C mostly, so many times, when this update was made."""

    def heard(meter: AdaptMeter, record: StepRecord, total: int) -> None:
        if record.update == update:
            for _ in range(times):
                signal.raise_signal(sent)

    monkeypatch.setattr(AdaptMeter, "heard", heard)


def same_run(one: str, other: str) -> bool:
    """Whether two folders hold the same, but for times."""
    return (contents(one), report(one), trace(one)) == (contents(other), report(other), trace(other))


@pytest.mark.parametrize("arguments", [["-m", "adarank"], ["-m", "tint++", "--stop", "agreement", "--every", "1"]])
def test_ctrl_c_says_what_continues_and_that_ends_with_the_same_bytes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    words = [*SHORT, *arguments, "--no-scores"]
    adapt(*arguments, "--no-scores", "-o", "whole")
    with monkeypatch.context() as stopped:
        stop_at(stopped, 2)
        outcome = run("adapt", *words, "-o", "cut")
    assert (outcome.code, outcome.out) == (130, "")
    message = (
        "interrupted: cut: not finished, kept as it was last saved\nhint: the same command with --resume continues it\n"
    )
    assert outcome.err.endswith(message)
    says = ("cut: holds an unfinished run", "--resume continues it, --overwrite starts again")
    refused(6, "adapt", *words, "-o", "cut", folder=tiny, says=says)
    refused(2, "adapt", *words, "--lr", "0.5", "-o", "cut", "--resume", folder=tiny, says=("another one: `recipe`",))
    resumed = run("adapt", *words, "-o", "cut", "--resume")
    assert (resumed.code, resumed.out) == (0, "cut\n"), resumed.err
    assert same_run("cut", "whole")


def test_ctrl_c_before_anything_was_learnt_leaves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(tiny)
    stop_at(monkeypatch, 0)
    outcome = run("adapt", *SHORT)
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted: no unfinished output is left\n")
    assert tree(tiny) == before


def test_a_finished_folder_stays_until_another_is_finished(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapt("--no-scores", "-o", "mine")
    before = tree(tiny / "mine")
    with monkeypatch.context() as stopped:
        stop_at(stopped, 2)
        outcome = run("adapt", *SHORT, "-o", "mine", "--overwrite", "--coefficient", "0.5")
    assert outcome.code == 130
    assert "--resume continues it" in outcome.err
    assert tree(tiny / "mine") == before
    adapt("--no-scores", "-o", "mine", "--overwrite", "--coefficient", "0.5", "--resume")
    adapt("--no-scores", "-o", "other", "--coefficient", "0.5")
    assert same_run("mine", "other")
    assert [path.name for path in tiny.iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_seed_is_continued(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapt("--no-scores", "--seeds", "1", "-o", "runs")
    first = tree(tiny / "runs" / "seed-0")
    with monkeypatch.context() as stopped:
        stop_at(stopped, 0)
        outcome = run("adapt", *SHORT, "--seeds", "2", "-o", "runs", "--resume", "--no-scores")
    assert (outcome.code, outcome.out) == (130, "")
    assert "runs: not finished" in outcome.err
    assert "--resume continues it" in outcome.err
    adapt("--no-scores", "--seeds", "2", "-o", "runs", "--resume")
    assert tree(tiny / "runs" / "seed-0") == first
    assert len(trace("runs/seed-1")) == 7


def test_a_failing_evaluation_does_not_cost_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(adapt_report, "evaluate", failing)
        assert run("adapt", *SHORT, "-m", "adarank").code == 130
    resumed = adapt("-m", "adarank", "--resume")
    assert report(resumed.paths[0])["learned"]["updates"] == 3
    assert report(resumed.paths[0])["scores"] is not None


@pytest.mark.parametrize("arguments", [["-m", "adarank"], ["-m", "tint++", "--stop", "agreement", "--every", "1"]])
def test_a_signal_between_saves_costs_no_update(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """The update under way is finished and saved, however long ago that was done, and goes on from there."""
    monkeypatch.setattr(running, "SAVED_EVERY", 1e9)
    words = [*SHORT, *arguments, "--no-scores"]
    adapt(*arguments, "--no-scores", "-o", "whole")
    with monkeypatch.context() as stopped:
        press_at(stopped, 2)
        outcome = run("adapt", *words, "-o", "cut")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.endswith("hint: the same command with --resume continues it\n")
    assert [line["update"] for line in trace("cut")] == [0, 1, 2]
    assert load_state(tiny / "cut" / "state")[0].update == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = run("adapt", *words, "-o", "cut", "--resume")
    assert (resumed.code, resumed.out) == (0, "cut\n"), resumed.err
    assert same_run("cut", "whole")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_every_stop_is_saved_first(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    """As a job's time limit sends it, and a terminal that closes."""
    monkeypatch.setattr(running, "SAVED_EVERY", 1e9)
    press_at(monkeypatch, 2, sent=sent)
    outcome = run("adapt", *SHORT, "--no-scores", "-o", "cut")
    assert (outcome.code, outcome.out) == (code, "")
    assert load_state(tiny / "cut" / "state")[0].update == 2


def test_a_second_signal_leaves_at_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SAVED_EVERY", 1e9)
    press_at(monkeypatch, 2, times=2)
    outcome = run("adapt", *SHORT, "--no-scores", "-o", "cut")
    assert outcome.code == 130
    assert "the same command with --resume continues it" in outcome.err
    assert load_state(tiny / "cut" / "state")[0].update == 0, "as it was last saved"


def test_a_signal_in_the_last_update_is_heard(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    press_at(monkeypatch, 6)
    outcome = run("adapt", *SHORT, "--no-scores", "-o", "cut")
    assert outcome.code == 130
    monkeypatch.undo()
    monkeypatch.chdir(tiny)
    assert run("adapt", *SHORT, "--no-scores", "-o", "cut", "--resume").code == 0


def test_a_signal_that_is_not_pythons_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torchrun's processes, and in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with saved_first(quiet=True) as asked:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)
    found: list[bool] = []

    def elsewhere() -> None:
        with saved_first(quiet=True) as asked:
            found.append(asked())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


# --- in processes of their own ---------------------------------------------------------------------------------


def start(*words: str, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    """The program in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", OFTEN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=before or partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's jobs ignore it
    )  # fmt: skip


def wait_for_updates(folder: Path, count: int) -> None:
    """Until a run has written so many lines of its trace, and its state."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = folder / "trace.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") > count and (folder / "state").is_dir():
            return
        time.sleep(0.01)
    raise AssertionError("the run has not begun")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_whatever_stops_the_process_a_resumed_run_ends_the_same(tiny: Path, sent: signal.Signals, code: int) -> None:
    whole, cut = start(*LONG, "-o", "whole"), start(*LONG, "-o", "cut")
    wait_for_updates(tiny / "cut", 20)
    cut.send_signal(sent)
    out, error = cut.communicate(timeout=120)
    assert (cut.returncode, out) == (code, ""), error
    assert "Traceback" not in error
    if sent != signal.SIGKILL:
        assert "the same command with --resume continues it" in error
    stopped = len(trace("cut"))
    resumed = start(*LONG, "-o", "cut", "--resume")
    out, error = resumed.communicate(timeout=120)
    assert (resumed.returncode, out) == (0, "cut\n"), error
    assert whole.communicate(timeout=120)[0] == "whole\n"
    assert same_run("cut", "whole")
    assert stopped < len(trace("cut")) == 301


@pytest.mark.slow
@pytest.mark.parametrize(("room", "file"), [(12_000, "trace.jsonl"), (100, "trace.jsonl"), (300_000, "model")])
def test_a_full_disk_is_told_and_costs_nothing(tiny: Path, room: int, file: str) -> None:
    """Files may not grow beyond `room`: the trace of 60 updates does, and the model."""
    words = ["adapt", "-m", "adamerging", "-n", "60", "--limit", "64", "--no-cache", "--no-scores", "-j", "1"]
    before = tree(tiny)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    out, error = start(*words, "-o", "full", before=limit).communicate(timeout=120)
    assert out == ""
    assert "cannot be written: File too large" in error
    assert file in error
    assert "Traceback" not in error
    if room < 1000:
        assert tree(tiny) == before, "nothing was learnt, so nothing is kept"
        return
    assert "--resume" in error or file == "model"
    for place, more in (("full", ["--resume"]), ("whole", [])):
        done = start(*words, "-o", place, *more)
        assert done.communicate(timeout=120)[0] == f"{place}\n"
    assert same_run("full", "whole")
