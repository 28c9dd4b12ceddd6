"""The spectra of synthetic ViT-B/32 experts beside `torch.linalg.svdvals` in a loop, and beside MergeLens on a pair.

python benchmarks/spectrum.py [--experts 8] [--layers 12] [--rounds 3] [--threads 2] [--lens PYTHON]

All sides read the same files, one after the other in every round: `taskmerge spectrum` (all it measures, about base and
average); the singular values of the task vectors alone, as taskmerge computes them (float64 Gram matrices, several
matrices at once); `svdvals` of every task matrix in float32, about the base, and about both. PYTHON is one that has
mergelens: `compare` of two experts with their base, against `taskmerge spectrum` of the same three files.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

import synthetic
from taskmerge.experts.parallel import parallel
from taskmerge.experts.tensors import units
from taskmerge.numerics.lapack import single_threaded

LENS = (
    "import sys\nfrom mergelens import compare_models\n"
    "compare_models([sys.argv[1], sys.argv[2]], base_model=sys.argv[3], device='cpu')\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("experts", 8), ("layers", 12), ("width", 768), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--lens", help="a Python that has mergelens")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write(Path(folder), said.experts, said.layers, said.width, torch.float32)
        rounds(Path(folder), said)


def rounds(folder: Path, said: argparse.Namespace) -> None:
    """Every side in every round; medians and their ratios."""
    experts = [folder / f"expert{index}.safetensors" for index in range(said.experts)]
    base, names = folder / "base.safetensors", matrices(folder / "base.safetensors")
    sides: dict[str, Callable[[], object]] = {
        "taskmerge spectrum": lambda: whole(base, experts, said.threads),
        "its singular values alone": lambda: values(base, experts, names, said.threads),
        "svdvals loop": lambda: loop(base, experts, names),
        "svdvals loop, base and average": lambda: loop(base, experts, names, centred=True),
    }
    if said.lens:
        sides["taskmerge spectrum of a pair"] = lambda: whole(base, experts[:2], said.threads)
        sides["mergelens of the pair"] = lambda: lens(said.lens, base, experts[:2], said.threads)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(said.rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, times in taken.items():
        print(f"{name:<32}{min(times):>8.2f}{medians[name]:>8.2f}{max(times):>8.2f} s (min, median, max)")
    print(f"values alone, times svdvals: {medians['svdvals loop'] / medians['its singular values alone']:.2f}")
    print(
        f"all, times svdvals of both: {medians['svdvals loop, base and average'] / medians['taskmerge spectrum']:.2f}"
    )
    if said.lens:
        ratio = medians["mergelens of the pair"] / medians["taskmerge spectrum of a pair"]
        print(f"pair, times mergelens: {ratio:.2f}")


def matrices(path: Path) -> list[str]:
    """The matrices that `spectrum` measures."""
    from taskmerge.checkpoint.checkpoint import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        return [unit.name for unit in units(checkpoint.specs) if unit.truncated()]


def whole(base: Path, experts: list[Path], threads: int) -> None:
    """The command, as its users run it."""
    words = ["spectrum", *map(str, experts), "--base", str(base), "--threads", str(threads), "--quiet"]
    subprocess.run([sys.executable, "-m", "taskmerge", *words], check=True, stdout=subprocess.DEVNULL)


def task_matrix(base: Path, expert: Path, name: str) -> torch.Tensor:
    with safe_open(base, "pt") as origin, safe_open(expert, "pt") as tuned:
        return tuned.get_tensor(name) - origin.get_tensor(name)


def values(base: Path, experts: list[Path], names: list[str], threads: int) -> None:
    """Every task matrix's singular values as `spectrum` computes them, without what lies between tasks."""
    import threading
    from dataclasses import dataclass

    from taskmerge.numerics.whole import whole as solved

    @dataclass(frozen=True)
    class Job:
        expert: Path
        name: str
        memory: int = 0

    jobs = [Job(expert, name) for name in names for expert in experts]
    with single_threaded():
        done = parallel(
            jobs, lambda job: solved(task_matrix(base, job.expert, job.name), 0).values, workers=threads,
            in_flight=1 << 40, stop=threading.Event(),
        )  # fmt: skip
        assert len(list(done)) == len(jobs)


def loop(base: Path, experts: list[Path], names: list[str], *, centred: bool = False) -> None:
    """`svdvals` of one task matrix after the other."""
    for name in names:
        stack = torch.stack([task_matrix(base, expert, name) for expert in experts])
        for matrix in stack:
            torch.linalg.svdvals(matrix)
        for matrix in stack - stack.mean(0) if centred else ():
            torch.linalg.svdvals(matrix)


def lens(python: str, base: Path, experts: list[Path], threads: int) -> None:
    """MergeLens on the pair: it takes folders."""
    folders = []
    for path in (*experts, base):
        folders.append(path.with_suffix(""))
        folders[-1].mkdir(exist_ok=True)
        (folders[-1] / "model.safetensors").unlink(missing_ok=True)
        (folders[-1] / "model.safetensors").symlink_to(path)
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"}
    words = [python, "-c", LENS, *map(str, folders)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)


if __name__ == "__main__":
    main()
