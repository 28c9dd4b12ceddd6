"""The same bytes from fresh processes, whatever the hash seed, the number of threads and the order of arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from merge_cases import digest, merge

Files = dict[str, Path]

MANY = """
import sys
from taskmerge.cli import app
out, threads, *order = sys.argv[1:]
for method in {methods!r}:
    path = out + "/" + "".join(method).replace("-", "") + ".safetensors"
    code = app.run(["merge", *order, "-m", *method, "-o", path, "--threads", threads, "-q"])
    if code:
        sys.exit(code)
"""
METHODS = [
    ["cart"],
    ["average", "--weight", "cars=0.3"],
    ["task_arithmetic"],
    ["ties"],
    ["ties", "--scope", "tensor"],
    ["dare"],
    ["dare", "--then", "ties", "--seed", "3"],
    ["breadcrumbs"],
    ["tsv_m"],
    ["iso_cts"],
    ["star"],
    ["pcb"],
    ["consensus_ties"],
    ["magmax"],
    ["model_stock"],
    ["task_arithmetic", "--lines"],
]


ORDERS = [
    ["base", "cars", "dogs", "maps"],
    ["maps", "dogs", "base", "cars"],
    ["dogs", "maps", "cars", "base"],
]


def started(folder: Path, seed: int, threads: int, order: list[str]) -> "subprocess.Popen[str]":
    """One merge per method, all in one fresh process with this hash seed."""
    command = [sys.executable, "-c", MANY.format(methods=METHODS), str(folder), str(threads), *order]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.glob("*.safetensors"))}


def test_bytes_do_not_depend_on_hash_seed_threads_or_order(experts: Files, here: Path) -> None:
    """Two fresh processes against this one."""
    files = [[f"{name}.safetensors" for name in order] for order in ORDERS]
    fresh = [started(here / f"run{seed}", seed, seed + 1, files[seed]) for seed in (1, 2)]
    for method in METHODS:
        path = here / "run0" / ("".join(method).replace("-", "") + ".safetensors")
        merge(*files[0], "-m", *method, "-o", path, "--threads", 1, "-q")
    wanted = digests(here / "run0")
    assert len(wanted) == len(METHODS)
    for seed, process in enumerate(fresh, start=1):
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        assert digests(here / f"run{seed}") == wanted, f"hash seed {seed}"


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_two_runs_on_threads_are_one(experts: Files, here: Path, threads: int) -> None:
    first = merge("[bcdm]*s*.safetensors", "--threads", threads, "-o", "1/out.safetensors").paths[0]
    other = merge("[bcdm]*s*.safetensors", "--threads", 3, "-o", "2/out.safetensors").paths[0]
    assert digest(Path(first)) == digest(Path(other))
