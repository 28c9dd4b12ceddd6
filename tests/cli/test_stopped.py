"""The program stopped from outside, at whatever moment, and on machines that lack something: codes and messages."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from merge_cases import save, tree

PROGRAM = (sys.executable, "-m", "taskmerge")
MERGE = ("merge", "a.safetensors", "b.safetensors", "-m", "average", "-o", "out.safetensors", "--shard-size", "1kB")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"h.{n}.fc.weight": torch.randn(16, 16, generator=generator) for n in range(4)}
        save(tmp_path / f"{name}.safetensors", tensors)
    return tmp_path


def started(*words: str, before: Callable[[], object] | None = None, **environment: str) -> subprocess.Popen[str]:
    """The program in the background, its signals as a terminal leaves them."""

    def prepared() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        if before is not None:
            before()

    return subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepared,
        start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def stop_at(moment: float, number: int) -> tuple[int, str]:
    process = started(*MERGE, "--overwrite")
    time.sleep(moment)
    process.send_signal(number)
    return ended(process)


def check_stops(here: Path, moments: int) -> None:
    """SIGINT, SIGTERM and SIGHUP from the first imports on: their codes, no traceback, nothing half done."""
    begun = time.monotonic()
    code, error = ended(started(*MERGE))
    took = time.monotonic() - begun
    assert code == 0, error
    before, chance = tree(here), random.Random(moments)
    for _ in range(moments):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            moment = chance.uniform(0.1, took)
            code, error = stop_at(moment, number)
            assert code in (0, 128 + number), f"{moment}: {code} {error}"
            assert "Traceback" not in error, f"{moment}: {error}"
            assert code == 0 or "interrupted: no unfinished output is left" in error
            assert tree(here) == before, moment


def test_stops_at_a_few_moments(here: Path) -> None:
    check_stops(here, 1)


@pytest.mark.slow
def test_stops_at_many_moments(here: Path) -> None:
    check_stops(here, 25)


LOOKING = {
    "spectrum": ("spectrum", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "-o", "pages"),
    "recover": ("recover", "a.safetensors", "a.safetensors", "b.safetensors"),
    "report": ("report", "pages", "-o", "joined"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", LOOKING)
def test_what_looks_at_experts_stops_at_many_moments(here: Path, command: str) -> None:
    """A page stays as it was or is there anew, whole; nothing else is left."""
    save(here / "base.safetensors", {f"h.{n}.fc.weight": torch.ones(16, 16) for n in range(4)})
    assert ended(started(*LOOKING["spectrum"]))[0] == 0
    begun = time.monotonic()
    assert ended(started(*LOOKING[command], *(() if command == "recover" else ("--overwrite",))))[0] == 0
    took, before, chance = time.monotonic() - begun, untimed(here), random.Random(command)
    for _ in range(8):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            moment = chance.uniform(0.1, took)
            process = started(*LOOKING[command], *(() if command == "recover" else ("--overwrite",)))
            time.sleep(moment)
            process.send_signal(number)
            code, error = ended(process)
            assert code in (0, 128 + number), f"{moment}: {code} {error}"
            assert "Traceback" not in error, f"{moment}: {error}"
            assert code == 0 or "interrupted" in error, f"{moment}: {error}"
            assert untimed(here) == before, moment


SWEEP = ("spectrum", "--suite", str(Path(__file__).parents[2] / "examples" / "tiny"), "--tasks", "digits,shapes",
         "--sweep", "rank,subsets", "--sweep-rank", "0.04,0.08,0.16", "--limit", "20", "--quiet")  # fmt: skip


@pytest.mark.slow
def test_a_sweep_that_is_stopped_again_and_again_ends_as_one_that_was_not(here: Path) -> None:
    assert ended(started(*SWEEP, "-o", "whole", OMP_NUM_THREADS="1"))[0] == 0
    chance, stops = random.Random(0), (signal.SIGINT, signal.SIGKILL, signal.SIGTERM) * 3
    for number in stops:
        process = started(*SWEEP, "-o", "cut", OMP_NUM_THREADS="1")
        points = len(stored(here / "cut"))
        while len(stored(here / "cut")) == points and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(number)
        code, error = ended(process)
        assert code in (0, 128 + number, -number), error
        assert "Traceback" not in error
        if code == 0:
            break
    else:
        assert ended(started(*SWEEP, "-o", "cut", OMP_NUM_THREADS="1"))[0] == 0
    one, other = (json.loads((here / name / "report.json").read_text())["sweeps"] for name in ("whole", "cut"))
    assert one == other
    assert not [path for path in (here / "cut").rglob("*") if "scratch" in path.name]


def stored(folder: Path) -> list[str]:
    """The points that a sweep has found so far, a line each."""
    return [line for path in folder.glob("sweeps/*.jsonl") for line in path.read_text().splitlines()]


def untimed(folder: Path) -> dict[str, object]:
    """Every file's content, that of a report without what runs differ in."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "report.json":
            document = json.loads(path.read_text())
            document.pop("timing", None)
            found[str(path)] = document
        elif path.is_file():
            timed = path.suffix in {".html", ".md", ".log"}
            found[str(path)] = path.stat().st_size > 0 if timed else path.read_bytes()
    return found


def test_a_signal_that_the_caller_ignores_stops_nothing(here: Path) -> None:
    process = started(*MERGE, before=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN))
    time.sleep(0.4)
    process.send_signal(signal.SIGHUP)
    code, error = ended(process)
    assert code == 0, error


NO_TEMPORARY = """
import sys, tempfile
def nowhere(*arguments, **options):
    raise FileNotFoundError(2, "No usable temporary directory found")
tempfile._get_default_tempdir = nowhere
from taskmerge.cli import app
sys.exit(app.run(sys.argv[1:]))
"""


def test_no_temporary_folder_is_needed(here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", NO_TEMPORARY, *MERGE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flag", ["-o", "--output"])
@pytest.mark.parametrize("command", ["merge", "vectors", "adapt", "eval"])
def test_an_empty_path_is_wrong_usage(here: Path, command: str, flag: str) -> None:
    code, error = ended(started(command, "a.safetensors", "b.safetensors", flag, ""))
    assert code == 2, error
    assert "names nothing" in error
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "place",
    [
        "/dev/null/out/",
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in ("/proc/nowhere/out.safetensors", "/sys/nowhere/out/")
        ),
    ],
)
def test_a_folder_that_cannot_be_made_is_an_output_that_cannot_be_written(here: Path, place: str) -> None:
    code, error = ended(started("merge", "a.safetensors", "b.safetensors", "-m", "average", "-o", place))
    assert code == 6, error
    assert place.rstrip("/") in error


def test_too_few_descriptors_are_told(here: Path) -> None:
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (40, 40))
    rank = ",".join(f"0.{number:03d}" for number in range(1, 64))
    words = ("merge", "a.safetensors", "b.safetensors", "-m", "cart", "--rank", rank, "-o", "out.safetensors", "-q")
    code, error = ended(started(*words, before=few))
    assert code == 6, error
    assert "Too many open files" in error
    assert "ulimit -n" in error
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "b.safetensors"]
