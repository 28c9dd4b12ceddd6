"""What a record says of the arithmetic: the same on one machine, whatever runs; another where the code is another."""

import json
import os
import subprocess
import sys

import pytest
import torch

from taskmerge.numerics.arithmetic import arithmetic

CPU = torch.device("cpu")
KINDS = (
    {"products": False, "factors": False},
    {"products": True, "factors": False},
    {"products": True, "factors": True},
)
SCRIPT = """
import json, sys, torch
from taskmerge.numerics.arithmetic import arithmetic
kinds = json.loads(sys.argv[1])
print(json.dumps([arithmetic(torch.device("cpu"), **kind) for kind in kinds]))
print("scipy" in sys.modules)
"""


def elsewhere(kinds: tuple[dict[str, bool], ...] = KINDS, **variables: str) -> tuple[list[dict[str, str]], bool]:
    """The same in a process of its own, and whether it has loaded scipy."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(kinds)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    found, loaded = done.stdout.splitlines()
    return json.loads(found), loaded == "True"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_small_and_the_same_each_time(kind: dict[str, bool]) -> None:
    first = arithmetic(CPU, **kind)
    arithmetic.cache_clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert arithmetic(CPU, **kind) == first
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert len(json.dumps(first)) < 200
    assert first["torch"] == torch.__version__
    assert first["cpu"] == torch.backends.cpu.get_cpu_capability()
    assert ("scipy" in first) == kind["factors"]


def test_sums_alone_depend_on_less() -> None:
    """The bytes of a method that only adds are the same under another BLAS, and so is its record."""
    plain, products, factors = (arithmetic(CPU, **kind)["rounding"] for kind in KINDS)
    assert len({plain, products, factors}) == 3


@pytest.mark.slow
def test_another_process_finds_the_same() -> None:
    here = [dict(arithmetic(CPU, **kind)) for kind in KINDS]
    for variables in ({}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "4"}, {"PYTHONHASHSEED": "7"}):
        assert elsewhere(**variables)[0] == here
    assert not elsewhere(KINDS[:1])[1], "methods that only add are spared scipy"


@pytest.mark.slow
@pytest.mark.skipif("mkl" not in torch.__config__.show().lower(), reason="this torch has no MKL")
def test_other_code_rounds_otherwise() -> None:
    """MKL's compatible code, as it is taken on other types of processors (of sums, torch may ask it for some too)."""
    here = [dict(arithmetic(CPU, **kind)) for kind in KINDS]
    compatible, _ = elsewhere(MKL_CBWR="COMPATIBLE")
    assert all(one["rounding"] != other["rounding"] for one, other in zip(compatible[1:], here[1:], strict=True))


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="there is no other code")
def test_torchs_own_code_is_named() -> None:
    plain, _ = elsewhere(ATEN_CPU_CAPABILITY="default")
    assert {one["cpu"] for one in plain} == {"DEFAULT"}
    assert plain[0]["rounding"] != arithmetic(CPU, **KINDS[0])["rounding"]
