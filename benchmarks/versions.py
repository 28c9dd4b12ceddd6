"""TSV-M and Iso-CTS of two source trees on ViT-B/32's matrices, in turns: what a change of the arithmetic costs.

    python benchmarks/versions.py OTHER/src [--rounds 7] [--tasks 8]

Each tree runs in a process of its own on one thread; the two take turns, call by call. Prints medians of
processor time and their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from spectral import matrix

METHODS = ("tsv_m", "iso_cts")
SHAPES = ((768, 768), (2304, 768), (3072, 768))


@cache
def stack(rows: int, columns: int, tasks: int) -> Tensor:
    """Task matrices [task, rows, columns] with power-law spectra: rolled copies share no singular vector."""
    one = matrix(rows, columns, "0.5")
    return torch.stack([one.roll((7 * task, 11 * task), (0, 1)) * one.roll(task, 0).sign() for task in range(tasks)])


def worker(tasks: int) -> None:
    """Answers lines `method rows columns` with the seconds of processor time that the method takes."""
    from taskmerge.methods.registry import find
    from taskmerge.numerics.lapack import single_threaded
    from taskmerge.numerics.spectral import TaskMatrices

    with single_threaded():
        for line in sys.stdin:
            method, rows, columns = line.split()
            matrices = TaskMatrices(stack(int(rows), int(columns), tasks))
            start = time.process_time()
            find(method).kernel(matrices)
            print(time.process_time() - start, flush=True)


def started(source: Path, tasks: int) -> subprocess.Popen[str]:
    """A worker on one source tree."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, __file__, "--worker", "--tasks", str(tasks)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(process: subprocess.Popen[str], line: str) -> float:
    """The seconds that a worker answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(line, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def table(other: Path, rounds: int, tasks: int) -> None:
    trees = {"other": started(other, tasks), "this": started(Path(__file__).resolve().parent.parent / "src", tasks)}
    print(f"{tasks} tasks, float32, one thread; processor seconds, medians of {rounds} calls in turns")
    print("method        shape   other    this  ratio  lowest of each")
    for method in METHODS:
        for rows, columns in SHAPES:
            seconds: dict[str, list[float]] = {name: [] for name in trees}
            for _ in range(rounds):
                for name, process in trees.items():
                    seconds[name].append(asked(process, f"{method} {rows} {columns}"))
            before, after = (statistics.median(seconds[name]) for name in ("other", "this"))
            least, lowest = (min(seconds[name]) for name in ("other", "this"))
            print(
                f"{method:8} {rows:5}x{columns:<5} {before:7.2f} {after:7.2f} {after / before:6.3f}"
                f"  {least:.2f} {lowest:.2f}", flush=True
            )  # fmt: skip
    for process in trees.values():
        process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        worker(chosen.tasks)
    elif chosen.other is None:
        parser.error("name the other source tree")
    else:
        table(chosen.other, chosen.rounds, chosen.tasks)
