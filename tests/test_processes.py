"""Several processes that work on one thing: exchanges, failures, Ctrl-C; a process alone."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from process_cases import ended, interrupt, start_each, start_torchrun, torchrun
from taskmerge.errors import NotEnough, UsageError
from taskmerge.launched import Ended, Seat, seat
from taskmerge.processes import ALONE, Group, group

CPU = torch.device("cpu")
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip


# --- alone -----------------------------------------------------------------------------------------------------


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert seat() == Seat()
    with group(CPU) as together:
        assert together is ALONE


def test_alone_every_exchange_is_the_identity() -> None:
    tensors = [torch.ones(3), torch.zeros(2, 2, dtype=torch.float64), torch.tensor(5)]
    assert all(a is b for a, b in zip(ALONE.sum_in_order(tensors), tensors, strict=True))
    assert ALONE.by_first(lambda: "made") == "made"
    assert ALONE.all(True)
    assert not ALONE.all(False)
    assert ALONE.placed(torch.device("cuda")) == torch.device("cuda")
    ALONE.barrier()
    ALONE.broadcast(tensors[0], 0)
    ALONE.check_same(tensors, "here")


@pytest.mark.parametrize(("items", "size"), [(0, 1), (7, 1), (7, 2), (7, 3), (2, 5), (16, 4)])
def test_shares_are_runs_that_differ_by_one_item(items: int, size: int) -> None:
    shares = Group(size=size).bounds(items)
    assert [place for start, stop in shares for place in range(start, stop)] == list(range(items))
    lengths = [stop - start for start, stop in shares]
    assert max(lengths) - min(lengths) <= 1


def launched(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {**LAUNCHED, **more}.items():
        monkeypatch.setenv(name, value)


def test_torchruns_environment_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_WORLD_SIZE="4")
    assert seat() == Seat(5, 8, 1, 4)


@pytest.mark.parametrize("wrong", [{"RANK": "2"}, {"WORLD_SIZE": "two"}, {"LOCAL_RANK": "2"}])
def test_an_environment_without_sense_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]) -> None:
    launched(monkeypatch, **wrong)
    with pytest.raises(UsageError, match="no process"):
        seat()


# --- together --------------------------------------------------------------------------------------------------


EXCHANGES = """
import json, sys
from pathlib import Path
import torch
from taskmerge.errors import BadNumber
from taskmerge.processes import SMALL, group

def drifts(together, value):
    try:
        together.check_same([torch.zeros(3), torch.tensor([value])], "update 7")
    except BadNumber as error:
        return error.message
    return None

def exchanged(together, place):
    def of(rank, shape, dtype=torch.float32):
        return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(place, dtype)
    kinds = [((3, 2), torch.float32), ((), torch.float64), ((0,), torch.float32), ((5,), torch.float32)]
    mine = [of(together.rank, *kind) for kind in kinds]
    expected = [of(0, *kind) for kind in kinds]
    for rank in range(1, together.size):
        expected = [a + of(rank, *kind) for a, kind in zip(expected, kinds)]
    total = together.sum_in_order(mine)
    large = torch.full((SMALL + 1,), float(together.rank + 1), device=place)
    (sums,) = together.sum_in_order([large])
    sent = torch.full((2, 2), float(together.rank), device=place)
    together.broadcast(sent, together.size - 1)
    return {
        "rank": together.rank, "first": together.is_first,
        "small": all(torch.equal(a, b) for a, b in zip(total, expected)),
        "large": sums.unique().tolist(), "sent": sent.unique().tolist(),
        "made": together.by_first(lambda: {"by": together.rank}), "none": together.by_first(lambda: None),
        "all": together.all(True), "some": together.all(together.rank == 0),
        "same": drifts(together, 1.0), "other": drifts(together, float(together.rank)),
        "device": str(place),
    }

device = torch.device(sys.argv[2])
found = []
for _ in range(2):  # one after the other in the same process
    with group(device) as together:
        with group(device, within=together) as same:
            assert same is together
        found.append(exchanged(together, together.placed(device)))
Path(sys.argv[1], f"{together.rank}.json").write_text(json.dumps(found))
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


def exchanges(folder: Path, device: str, processes: int) -> None:
    """All processes find what their exchanges should give, twice: in one group, and in the next."""
    outcome = torchrun([script(folder, EXCHANGES), folder, device], processes=processes)
    assert outcome.code == 0, outcome.err
    for rank in range(processes):
        first, second = json.loads((folder / f"{rank}.json").read_text())
        assert first == second == {
            "rank": rank, "first": rank == 0, "small": True, "sent": [processes - 1.0],
            "large": [processes * (processes + 1) / 2],
            "made": {"by": 0}, "none": None, "all": True, "some": False, "same": None,
            "other": "update 7: the processes have drifted apart\n"
                     "hint: run all processes on machines of one kind, or one process alone",
            "device": device if device == "cpu" else f"{device}:{rank}",
        }  # fmt: skip


@pytest.mark.slow
def test_exchanges_give_all_processes_the_same(tmp_path: Path) -> None:
    exchanges(tmp_path, "cpu", 3)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_exchanges_between_gpus(tmp_path: Path) -> None:
    exchanges(tmp_path, "cuda", 2)


def test_a_gpu_of_its_own_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from taskmerge.processes import _take_gpu

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotEnough, match="2 processes on this machine, which has 1 GPUs"):
        _take_gpu(Seat(0, 2, 0, 2), torch.device("cuda"))
    with pytest.raises(UsageError, match="`cuda:0` is one GPU for 2 processes"):
        _take_gpu(Seat(0, 2, 0, 2), torch.device("cuda", 0))


# --- failures --------------------------------------------------------------------------------------------------


FAILING = """
import os, signal, sys, time
import torch
from taskmerge.cli import app, commands, program
from taskmerge.errors import Mismatch, UsageError
from taskmerge.processes import group

def work(*, args, **more):
    how, seconds = args[1], float(args[2])
    if how == "alike":
        raise UsageError("not so", hint="but so")
    with group(torch.device("cpu"), patience=seconds) as together:
        print(f"working {together.rank}", file=sys.stderr)
        together.barrier()
        if together.rank == 1 and how == "fails":
            raise Mismatch("does not fit", where="here", hint="try another")
        if together.rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if together.rank == 1 and how == "frozen":
            time.sleep(seconds + 4)
        if how == "waiting":
            together.by_first(lambda: time.sleep(60))
        if how == "waited for" and together.rank == 1:
            raise Mismatch("does not fit", where="here", hint="try another")
        if how == "waited for":
            together.by_first(lambda: None)
        together.sum_in_order([torch.ones(2)])
        if how == "working":
            for _ in range(600):
                time.sleep(0.1 * together.rank)
                together.barrier()
    print("the result")

commands.load(["adapt"])  # it registers with the program that there was
program.app = work
app.main(sys.argv[1:])
"""
FITS = ["error: here: does not fit", "hint: try another"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "waited for"])
def test_one_failure_ends_all_with_its_message_and_status(tmp_path: Path, how: str) -> None:
    started = time.monotonic()
    both = [ended(one) for one in start_each(script(tmp_path, FAILING), "adapt", how, "60")]
    assert time.monotonic() - started < 40
    assert [one.code for one in both] == [4, 4]
    assert [one.complaints() for one in both] == [[], FITS]


@pytest.mark.slow
def test_torchrun_ends_with_one_message(tmp_path: Path) -> None:
    outcome = torchrun([script(tmp_path, FAILING), "adapt", "fails", "60"])
    assert outcome.code != 0
    assert outcome.complaints() == FITS
    assert outcome.out == ""


@pytest.mark.slow
def test_what_all_find_wrong_is_told_once(tmp_path: Path) -> None:
    outcome = torchrun([script(tmp_path, FAILING), "adapt", "alike", "60"])
    assert outcome.code != 0
    assert outcome.complaints() == ["error: not so", "hint: but so"]


@pytest.mark.slow
def test_the_first_process_alone_is_heard(tmp_path: Path) -> None:
    outcome = torchrun([script(tmp_path, FAILING), "adapt", "nothing", "60"])
    assert outcome.code == 0
    assert outcome.out == "the result\n"
    assert "working 0" in outcome.err
    assert "working 1" not in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize(("how", "seconds"), [("killed", "60"), ("frozen", "3")])
def test_a_process_that_is_gone_hangs_nobody(tmp_path: Path, how: str, seconds: str) -> None:
    started = time.monotonic()
    first, second = (ended(one) for one in start_each(script(tmp_path, FAILING), "adapt", how, seconds))
    assert time.monotonic() - started < 40
    assert first.code == 1
    assert "another process has gone" in first.complaints()[0]
    assert second.code == -signal.SIGKILL if how == "killed" else second.code != 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["working", "waiting"])
def test_ctrl_c_ends_all_and_is_told_once(tmp_path: Path, how: str) -> None:
    process = start_torchrun([script(tmp_path, FAILING), "adapt", how, "60"])
    for line in process.stderr or ():
        if "working" in line:
            break
    time.sleep(1)
    interrupt(process)
    started = time.monotonic()
    outcome = ended(process)
    assert time.monotonic() - started < 20
    assert outcome.code != 0
    assert outcome.complaints() == ["interrupted: no unfinished output is left"]


@pytest.mark.slow
def test_commands_that_work_alone_say_so_once() -> None:
    outcome = torchrun(["-m", "taskmerge", "methods"])
    assert outcome.code != 0
    assert outcome.out == ""
    hint = "hint: run it without torchrun: `taskmerge methods ...`"
    assert outcome.complaints() == ["error: torchrun: `methods` runs in one process", hint]


def test_a_failure_elsewhere_has_its_status() -> None:
    error = Ended("process 1 has failed: no", code=4, explained=True)
    assert error.exit_code == 4
    assert "process 1 has failed" in error.message
