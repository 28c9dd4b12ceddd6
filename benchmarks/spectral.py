"""Top-k truncation of one matrix: torch's SVD, ours, and the floor of the products alone; then two threads at once.

Run: python benchmarks/spectral.py [--spectrum 0.5|gauss] [--rounds 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from taskmerge.numerics.lapack import gram, single_threaded
from taskmerge.numerics.polar import polar
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices

SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
RANK = Rank("ratio", 0.08)


def matrix(rows: int, columns: int, spectrum: str) -> Tensor:
    """Gaussian, or s_i = i^-spectrum with Gaussian noise of the size of s_{r/4}."""
    generator = torch.Generator().manual_seed(rows + columns)
    noise = torch.randn(rows, columns, generator=generator)
    if spectrum == "gauss":
        return noise
    r = min(rows, columns)
    s = torch.arange(1, r + 1) ** -float(spectrum)
    u = torch.linalg.qr(torch.randn(rows, r, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(columns, r, generator=generator)).Q
    return (u * s) @ v.mT + noise * s[r // 4] / max(rows, columns) ** 0.5


def with_svd(matrix: Tensor, k: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vt[:k]


def with_ours(matrix: Tensor, k: int) -> Tensor:
    return TaskMatrices(matrix[None]).truncated_sum(k, [1.0])


def floor(matrix: Tensor, k: int) -> Tensor:
    """The Gram matrix, one side from the other, the truncated product: what any Gram method multiplies."""
    gram(matrix)
    if matrix.shape[0] >= matrix.shape[1]:
        near = matrix[:k]
        return (near @ matrix.mT).mT @ near
    near = matrix.mT[:k]
    return near.mT @ (near @ matrix)


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each call, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def error(matrix: Tensor, k: int) -> float:
    """Relative Frobenius error of our truncation against float64."""
    exact = with_svd(matrix.double(), k)
    return float((with_ours(matrix, k).double() - exact).norm() / exact.norm())


def scaling(matrices: list[Tensor], k: int) -> float:
    """How much faster two threads finish a list of matrices than one."""

    def run(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda one: with_ours(one, k), matrices))

    taken = interleaved({"one": lambda: run(1), "two": lambda: run(2)}, 3)
    return taken["one"] / taken["two"]


def table(spectrum: str, rounds: int) -> None:
    print(f"spectrum {spectrum}, k = 8%, float32, one thread; milliseconds, interleaved medians of {rounds}")
    print("     shape    k    svd   ours  floor  svd/ours  ours/floor  polar    error  means         two threads")
    for rows, columns in SHAPES:
        one, k = matrix(rows, columns, spectrum), RANK.resolve(min(rows, columns))
        taken = interleaved(
            {
                "svd": lambda one=one, k=k: with_svd(one, k),
                "ours": lambda one=one, k=k: with_ours(one, k),
                "floor": lambda one=one, k=k: floor(one, k),
                "polar": lambda one=one: polar(one),
            },
            rounds,
        )
        solver = TaskMatrices(one[None])
        solver.top(k)
        svd, ours, least = taken["svd"], taken["ours"], taken["floor"]
        print(
            f"{rows:5}x{columns:<5} {k:3} {svd * 1e3:6.0f} {ours * 1e3:6.1f} {least * 1e3:6.1f} {svd / ours:8.1f}x"
            f" {ours / least:10.1f}x {taken['polar'] * 1e3:6.0f} {error(one, k):8.1e}  {solver.solves[0].means:12}"
            f" {scaling([one.roll(index, 0) for index in range(8)], k):6.2f}x"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectrum", default="0.5")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with single_threaded():
        table(chosen.spectrum, chosen.rounds)
