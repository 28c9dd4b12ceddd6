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


def spent(arguments: list[str]) -> tuple[float, int]:
    """The processor's seconds and the peak memory in bytes of a process."""
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # nobody else can wait for it any more
    assert child.returncode == 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_codes_take_the_memory_of_bfloat16_and_at_most_1_3_times_its_time(method: str, tmp_path: Path) -> None:
    """For the same number of parameters, in blocks of 128 with ragged edges."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, list[str]] = {"codes": [], "bfloat16": []}
    for name in ("base", *(f"t{task}" for task in range(TASKS))):
        plain = {f"{i}.weight": 0.02 * torch.randn(4000, 3000, generator=generator) for i in range(6)}
        codes = {name: (256 * weight).to(torch.float8_e4m3fn) for name, weight in plain.items()}
        scales = {f"{name}_scale_inv": torch.full((32, 24), 1 / 256) for name in plain}
        for kind, tensors in (
            ("codes", codes | scales), ("bfloat16", {name: weight.bfloat16() for name, weight in plain.items()})
        ):  # fmt: skip
            (tmp_path / kind).mkdir(exist_ok=True)
            save_file(tensors, tmp_path / kind / f"{name}.safetensors")
            inputs[kind].append(str(tmp_path / kind / f"{name}.safetensors"))
    found: dict[str, list[tuple[float, int]]] = {"codes": [], "bfloat16": []}
    for kind in ("codes", "bfloat16") * 3:
        found[kind].append(spent(command(inputs[kind], method, tmp_path / "out.safetensors")))
    seconds, memory = ({kind: [one[i] for one in runs] for kind, runs in found.items()} for i in (0, 1))
    assert max(memory["codes"]) <= max(memory["bfloat16"]) + 24e6
    assert min(seconds["codes"]) <= 1.3 * min(seconds["bfloat16"])


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
