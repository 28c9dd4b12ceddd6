"""Several processes for tests: by torchrun, or started one by one with what torchrun would put into the environment."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        """What it said in the program's own words: not torchrun's."""
        kinds = ("error: ", "hint: ", "interrupted: ")
        return [line for line in self.err.splitlines() if line.startswith(kinds)]


def torchrun(arguments: Sequence[str | Path], *, processes: int = 2, folder: Path | None = None) -> Outcome:
    """`torchrun --nproc-per-node N ...` on this machine, to its end."""
    return ended(start_torchrun(arguments, processes=processes, folder=folder))


def start_torchrun(
    arguments: Sequence[str | Path], *, processes: int = 2, folder: Path | None = None
) -> subprocess.Popen[str]:  # fmt: skip
    """The same, under way, in a process group of its own: what a terminal's Ctrl-C reaches."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return _started([*launcher, *map(str, arguments)], {}, folder)


def start_each(script: Path, *arguments: str, processes: int = 2) -> list[subprocess.Popen[str]]:
    """So many processes of one script, without torchrun: nobody ends them but themselves."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost",
              "MASTER_PORT": port}  # fmt: skip
    return [
        _started([str(script), *arguments], {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C in the terminal that a command runs in."""
    os.killpg(process.pid, signal.SIGINT)


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Waits for it, and for everything that it has started."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Outcome(process.returncode, out, err)


def _started(
    arguments: Sequence[str], environment: dict[str, str], folder: Path | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **environment}, start_new_session=True,
    )  # fmt: skip
