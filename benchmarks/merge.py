"""Whole-process merges of synthetic ViT-B/32 encoders against the floor and the rivals, interleaved.

    python benchmarks/merge.py [--folder FOLDER] [--runs 5] [--only average,cart] [--rivals] [--device cuda]

Prints, for every command, median seconds, the ratio of medians to the floor of the same run (import torch, read every
input byte once, write the output, synced), and peak resident memory. `--rivals` needs TASKMERGE_RIVALS, a Python that
has mergekit and fusion-bench. `--device` is where ours and the loop of torch.linalg.svd compute. Times vary with the
machine; quote ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
MERGES = {
    "average": ["average"],
    "average, digests": ["average"],
    "task arithmetic": ["task_arithmetic"],
    "task arithmetic, digests": ["task_arithmetic"],
    "ties": ["ties"],
    "cart 8%": ["cart", "--rank", "0.08"],
    "tsv_m": ["tsv_m", "--also", "projection,embedding"],
}


@dataclass(frozen=True)
class Measured:
    seconds: float
    cpu: float
    memory: int


def run(command: list[str]) -> Measured:
    """One whole process: wall seconds, CPU seconds, peak resident bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return Measured(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def commands(folder: Path, work: Path, rivals: str | None, device: str) -> dict[str, list[str]]:
    """Every command by name; the floor comes first."""
    inputs = [str(path) for path in sorted(folder.glob("*.safetensors"))]
    place = ["--device", device]
    found = {"floor": [sys.executable, str(HERE / "floor.py"), str(work / "floor.bin"), *inputs]}
    for name, method in MERGES.items():
        out = ["-o", str(work / "out.safetensors"), "--overwrite", "--quiet"]
        digest = [] if "digests" in name else ["--no-digest"]
        found[name] = [sys.executable, "-m", "taskmerge", "merge", "-m", *method, *inputs, *out, *digest, *place]
    loop = [sys.executable, str(HERE / "svd_loop.py"), *place]
    found["torch.linalg.svd loop"] = [*loop, str(work / "svd.safetensors"), *inputs]
    if rivals:
        found |= mergekit(folder, work, rivals)
        found["fusion-bench tsv_m"] = [rivals, str(HERE / "rival_tsv_m.py"), *inputs]
    return found


def mergekit(folder: Path, work: Path, rivals: str) -> dict[str, list[str]]:
    """mergekit-pytorch with task arithmetic, linear and TIES on the same files."""
    experts = sorted(str(path) for path in folder.glob("expert*.safetensors"))
    base = str(folder / "base.safetensors")
    settings = {
        "task_arithmetic": ({"weight": 0.3}, {"normalize": False}),
        "linear": ({"weight": 1.0}, {"normalize": True}),
        "ties": ({"weight": 1.0, "density": 0.2}, {"normalize": True}),
    }
    found = {}
    for method, (each, whole) in settings.items():
        recipe = {"merge_method": method, "models": [{"model": one, "parameters": each} for one in experts]}
        recipe |= {"parameters": whole, "dtype": "float32"} | ({} if method == "linear" else {"base_model": base})
        path = work / f"{method}.yml"
        path.write_text(yaml.safe_dump(recipe))
        out = str(work / f"mergekit-{method}")
        found[f"mergekit {method}"] = [str(Path(rivals).parent / "mergekit-pytorch"), str(path), out]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help="commands whose names contain one of these, besides the floor")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--device", default="cpu")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = said.folder or work / "inputs"
        if not folder.exists():
            subprocess.run([sys.executable, str(HERE / "synthetic.py"), str(folder)], check=True)
        every = commands(folder, work, os.environ.get("TASKMERGE_RIVALS") if said.rivals else None, said.device)
        wanted = said.only.split(",") if said.only else [""]
        chosen = {name: c for name, c in every.items() if name == "floor" or any(one in name for one in wanted)}
        results: dict[str, list[Measured]] = {name: [] for name in chosen}
        run(chosen["floor"])  # warms the page cache
        for _ in range(said.runs):
            for name, command in chosen.items():
                results[name].append(run(command))
    report(results)


def report(results: dict[str, list[Measured]]) -> None:
    """Medians and their ratios to the floor."""
    floor = statistics.median(one.seconds for one in results["floor"])
    print(f"{'command':26} {'median s':>9} {'min':>7} {'max':>7} {'x floor':>8} {'cpu s':>7} {'peak MB':>8}")
    for name, runs in results.items():
        seconds = [one.seconds for one in runs]
        median, cpu = statistics.median(seconds), statistics.median(one.cpu for one in runs)
        peak = max(one.memory for one in runs) / 1e6
        print(
            f"{name:26} {median:9.2f} {min(seconds):7.2f} {max(seconds):7.2f} {median / floor:8.2f} "
            f"{cpu:7.2f} {peak:8.0f}"
        )


if __name__ == "__main__":
    main()
