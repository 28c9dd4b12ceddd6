"""kill -9 while writing: no half file under a final name, nothing that a glob catches, and the next run succeeds."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from checkpoint_files import raw_bytes

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.writer import stage

SIDE = 128
COUNT = 24

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")


TENSORS = [torch.full((SIDE, SIDE), float(number)) for number in range(COUNT)]


def write_model(path: Path, *, folder: bool, pause: float = 0.0) -> Path:
    specs = [OutputSpec(f"t{number}", "F32", (SIDE, SIDE)) for number in range(COUNT)]
    shard_size = 8 * SIDE * SIDE * 4 if folder else None
    with stage(path, specs, folder=folder, shard_size=shard_size, overwrite=True) as sink:
        for number in range(COUNT):
            sink.write(f"t{number}", TENSORS[number])
            time.sleep(pause)
        sink.commit({"format": "pt"})
    return sink.path


def check_whole(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.specs) == COUNT
        for number in range(COUNT):
            assert raw_bytes(checkpoint.tensor(f"t{number}")) == raw_bytes(TENSORS[number])


def write_and_be_killed(path: Path, *, folder: bool, delay: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            while True:
                write_model(path, folder=folder, pause=0.001)
        finally:
            os._exit(1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check_kills(tmp_path: Path, *, folder: bool, moments: int) -> None:
    chance = random.Random(0)
    for moment in range(moments):
        home = tmp_path / str(moment)
        home.mkdir()
        path = home / ("out" if folder else "x.safetensors")
        write_and_be_killed(path, folder=folder, delay=chance.uniform(0.0, 0.15))
        assert {entry.name for entry in home.iterdir() if not entry.name.startswith(".")} <= {path.name}
        if path.exists() and not folder:
            check_whole(path)
        for entry in home.rglob("*.safetensors"):
            with open_checkpoint(entry) as checkpoint:  # committed while it lived: whole files only
                assert checkpoint.specs
        write_model(path, folder=folder)
        check_whole(path)
        assert [entry.name for entry in home.iterdir()] == [path.name]
        assert not [entry for entry in home.rglob("*") if ".tmp-" in entry.name]


@pytest.mark.parametrize("folder", [False, True])
def test_five_kills(tmp_path: Path, folder: bool) -> None:
    check_kills(tmp_path, folder=folder, moments=5)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [False, True])
def test_twenty_kills(tmp_path: Path, folder: bool) -> None:
    check_kills(tmp_path, folder=folder, moments=20)
