"""Whole processes: memory that does not grow with the model, kills that leave nothing, the same bytes everywhere."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

WIDTH, TASKS = 256, 4


def write(folder: Path, layers: int, width: int = WIDTH) -> list[str]:
    """A base and experts with `layers` blocks of one matrix [4 width, width] and a bias."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(layers)
    names = {f"blocks.{i}.mlp.weight": (4 * width, width) for i in range(layers)}
    names |= {f"blocks.{i}.mlp.bias": (4 * width,) for i in range(layers)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    save_file(base, folder / "base.safetensors")
    for task in range(TASKS):
        save_file(
            {n: v + 0.01 * torch.randn(v.shape, generator=generator) for n, v in base.items()},
            folder / f"t{task}.safetensors",
        )
    return sorted(str(path) for path in folder.glob("*.safetensors"))


def command(inputs: list[str], method: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "taskmerge", "merge", "-m", method, *inputs, "-o", str(out), "--overwrite", "--quiet",
        *more,
    ]  # fmt: skip


def receipt(arguments: list[str]) -> dict[str, int]:
    """What a process says about its run."""
    done = subprocess.run([*arguments, "--json"], capture_output=True, text=True, check=True)
    said: dict[str, int] = json.loads(done.stdout)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cart", "ties", "task_arithmetic", "tsv_m", "model_stock"])
def test_peak_memory_does_not_depend_on_the_number_of_layers(method: str, tmp_path: Path) -> None:
    few, many = write(tmp_path / "few", 8), write(tmp_path / "many", 32)
    peaks = [receipt(command(inputs, method, tmp_path / "out.safetensors"))["peak_memory"] for inputs in (few, many)]
    size = sum(Path(path).stat().st_size for path in many)
    assert peaks[1] - peaks[0] < 24e6 < 0.2 * size


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cart", "tsv_m", "ties", "breadcrumbs"])
def test_predicted_memory_is_kept(method: str, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", 8, 512)
    said = receipt(command(inputs, method, tmp_path / "o.safetensors"))
    assert said["peak_memory"] <= said["predicted_memory"]


@pytest.mark.slow
def test_kill_at_random_moments_leaves_nothing_that_a_glob_catches(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", 48)
    out = tmp_path / "in" / "merged.safetensors"
    moments = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command(inputs, "cart", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(1.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        caught = sorted(str(path) for path in (tmp_path / "in").glob("*.safetensors"))
        if out.exists():
            assert len(load_file(out)) == 96  # it had finished: the file is whole
            out.unlink()
            caught.remove(str(out))
        assert caught == inputs
    subprocess.run(command(inputs, "cart", out), check=True, stdout=subprocess.DEVNULL)
    assert len(load_file(out)) == 96
    assert not list((tmp_path / "in").glob(".*tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cart", "ties", "dare", "average"])
def test_same_bytes_for_hash_seeds_threads_and_orders(method: str, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", 2)
    found = set()
    for seed in range(4):
        out = tmp_path / f"{seed}.safetensors"
        rotated = inputs[seed:] + inputs[:seed]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        threads = ("--threads", str((1, 2, 4, 3)[seed]))
        subprocess.run(command(rotated, method, out, *threads), check=True, env=environment, stdout=subprocess.DEVNULL)
        found.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(found) == 1
