"""`torchrun --nproc-per-node 2 -m taskmerge adapt ...`: one line on stdout, every line on stderr once, one message."""

import time
from pathlib import Path

import pytest

from process_cases import Outcome, ended, interrupt, start_torchrun, torchrun
from taskmerge.adaptation.state import load_state

pytestmark = pytest.mark.slow
SUITE = Path(__file__).parents[2] / "examples/tiny/suite.yaml"
COMMAND = ("-m", "taskmerge", "adapt", "--suite", str(SUITE), "--method", "adamerging", "--tasks", "digits,letters",
           "--limit", "60", "--no-cache", "--no-scores", "--device", "cpu")  # fmt: skip


def adapt(folder: Path, *more: str) -> Outcome:
    return torchrun([*COMMAND, *more], folder=folder)


def test_one_process_speaks_and_failures_are_told_once(tmp_path: Path) -> None:
    done = adapt(tmp_path, "--iterations", "2", "-o", "out")
    assert done.code == 0, done.err
    assert done.out == "out\n"
    told = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert told
    assert len(told) == len(set(told))
    (end,) = (line for line in done.err.splitlines() if line.startswith("done in"))
    assert " in 2 processes: " in end
    again = adapt(tmp_path, "--iterations", "2", "-o", "out")
    assert again.code != 0
    assert again.out == ""
    assert again.complaints() == ["error: out: exists already", "hint: --overwrite replaces it, -o names another"]


def test_ctrl_c_keeps_what_resume_continues(tmp_path: Path) -> None:
    process = start_torchrun([*COMMAND, "--iterations", "100000", "-o", "out"], folder=tmp_path)
    while not (tmp_path / "out/trace.jsonl").is_file() or len(trace(tmp_path)) < 10:
        time.sleep(0.01)
    interrupt(process)
    outcome = ended(process)
    assert outcome.code != 0
    assert outcome.complaints() == [
        "interrupted: out: not finished, kept as it was last saved",
        "hint: the same command with --resume continues it",
    ]
    state, _ = load_state(tmp_path / "out/state")
    assert state.update + 1 == len(trace(tmp_path)), "every update that was made is saved"


def trace(folder: Path) -> list[str]:
    return (folder / "out/trace.jsonl").read_text(encoding="utf-8").splitlines()
