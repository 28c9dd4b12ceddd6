"""TSV-M, Iso-C and Iso-CTS of real experts (TASKMERGE_EXPERTS), merged by the command's engine and by fusion-bench."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import taskmerge

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none") / "vision"
pytestmark = [
    pytest.mark.rivals,
    pytest.mark.skipif(not HOME.is_dir(), reason="TASKMERGE_EXPERTS names no experts"),
]
CLOSE = 1e-4
FUSED = ".in_proj_weight"

SCRIPT = """
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

deltas = [
    {name.split("/")[1]: tensor for name, tensor in given.items() if name.startswith(f"{task}/")}
    for task in options["tasks"]
]
for method, merged in {
    "tsv_m": compute_and_sum_svd_mem_reduction(deltas, accelerator="cpu"),
    "iso_c": iso_c(deltas, accelerator="cpu"),
    "iso_cts": iso_cts(deltas, 0.8, accelerator="cpu"),
}.items():
    result.update({f"{method}/{name}": tensor for name, tensor in merged.items()})
"""


def task_vectors() -> tuple[dict[str, Tensor], list[str]]:
    """`TASK/NAME` in float32, fused attention cut in three as `NAME#0` … too; and the tasks."""
    base = load_file(HOME / "base.safetensors")
    deltas, tasks = {}, []
    for path in sorted(HOME.glob("*.safetensors")):
        if path.stem == "base":
            continue
        tasks.append(path.stem)
        for name, tensor in load_file(path).items():
            delta = tensor.float() - base[name].float()
            deltas[f"{path.stem}/{name}"] = delta
            if name.endswith(FUSED):
                deltas |= {f"{path.stem}/{name}#{index}": piece.clone() for index, piece in enumerate(delta.chunk(3))}
    return deltas, tasks


@pytest.fixture(scope="module")
def theirs(rival: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """fusion-bench's merged task vectors `METHOD/NAME`, all from one start of its Python."""
    deltas, tasks = task_vectors()
    return rival(SCRIPT, deltas, tasks=tasks)


def expected(theirs: dict[str, Tensor], method: str, name: str, qkv: str) -> Tensor:
    if qkv == "split" and name.endswith(FUSED):
        return torch.cat([theirs[f"{method}/{name}#{index}"] for index in range(3)])
    return theirs[f"{method}/{name}"]


@pytest.mark.parametrize("qkv", ["as-is", "split"])
@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts"])
def test_real_experts_merge_as_by_fusion_bench(
    method: str, qkv: str, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "merged.safetensors"
    taskmerge.merge(
        sorted(HOME.glob("*.safetensors")), method=method, also=["projection", "embedding"], qkv=qkv, dtype="float32",
        output=out,
    )  # fmt: skip
    base, merged = load_file(HOME / "base.safetensors"), load_file(out)
    missed, length = 0.0, 0.0
    for name, tensor in merged.items():
        delta = expected(theirs, method, name, qkv).double()
        off = float((tensor.double() - base[name].double() - delta).norm())
        rounding = torch.finfo(torch.float32).eps * float(tensor.double().norm())  # theirs never meets the base
        assert off <= CLOSE * float(delta.norm()) + rounding, name
        missed, length = missed + off**2, length + float(delta.norm()) ** 2
    assert missed <= CLOSE**2 * length
