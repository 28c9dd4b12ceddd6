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


def merged(folder: Path, seed: int, threads: int, order: list[str]) -> dict[str, str]:
    """The digests of one merge per method, all in one fresh process."""
    script = MANY.format(methods=METHODS)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(threads), *order],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return {path.name: digest(path) for path in sorted(folder.glob("*.safetensors"))}


def test_bytes_do_not_depend_on_hash_seed_threads_or_order(experts: Files, here: Path) -> None:
    names = ["base", "cars", "dogs", "maps"]
    orders = [
        ["base", "cars", "dogs", "maps"],
        ["maps", "dogs", "base", "cars"],
        ["dogs", "maps", "cars", "base"],
        names[::-1],
    ]
    runs = [
        merged(here / f"run{seed}", seed, threads, [f"{name}.safetensors" for name in order])
        for seed, threads, order in zip(range(4), (1, 2, 4, 2), orders, strict=True)
    ]
    assert len(runs[0]) == len(METHODS)
    for number, found in enumerate(runs[1:], start=1):
        assert found == runs[0], f"run {number}"


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_two_runs_on_threads_are_one(experts: Files, here: Path, threads: int) -> None:
    first = merge("[bcdm]*s*.safetensors", "--threads", threads, "-o", "1/out.safetensors").paths[0]
    other = merge("[bcdm]*s*.safetensors", "--threads", 3, "-o", "2/out.safetensors").paths[0]
    assert digest(Path(first)) == digest(Path(other))
