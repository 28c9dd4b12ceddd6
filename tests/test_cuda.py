"""On a CUDA device: every method as on the CPU, the same bytes twice, memory within the plan. Skipped without one."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.methods.registry import methods

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and four experts with two blocks."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "blocks.0.attn.weight": (96, 64),
        "blocks.1.mlp.weight": (64, 160),
        "blocks.1.mlp.bias": (64,),
        "proj": (64, 32),
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    for task in "abcd":
        save_file(
            {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in base.items()},
            folder / f"{task}.safetensors",
        )
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_method_on_cuda_is_the_method_on_the_cpu(name: str, inputs: list[Path], tmp_path: Path) -> None:
    high = methods()[name].tasks[1]
    chosen = inputs if high is None else inputs[: high + 1]
    results = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.safetensors"
        taskmerge.merge(chosen, method=name, device=device, output=out)
        results[device] = load_file(out)
    for tensor, wanted in results["cpu"].items():
        error = (results["cuda"][tensor] - wanted).norm() / wanted.norm()
        assert float(error) < 1e-5, tensor


@pytest.mark.parametrize("name", ["cart", "tsv_m", "iso_c", "ties", "dare"])
def test_two_runs_on_cuda_give_the_same_bytes(name: str, inputs: list[Path], tmp_path: Path) -> None:
    found = set()
    for turn in range(2):
        out = tmp_path / f"{turn}.safetensors"
        taskmerge.merge(inputs, method=name, device="cuda", output=out)
        found.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(found) == 1


@pytest.mark.parametrize("name", ["cart", "tsv_m", "average"])
def test_device_memory_stays_within_the_plan(name: str, inputs: list[Path], tmp_path: Path) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    receipt = taskmerge.merge(inputs, method=name, device="cuda", output=tmp_path / "o.safetensors")
    assert torch.cuda.max_memory_allocated() - before <= receipt.predicted_memory


@pytest.mark.parametrize("options", [{"method": "adarank", "iterations": 3}, {"method": "symerge", "iterations": 2}])
def test_adapting_on_cuda_is_adapting_on_the_cpu(options: dict[str, object], tmp_path: Path) -> None:
    suite = Path(__file__).parents[1] / "examples" / "tiny"
    found = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        taskmerge.adapt(suite=suite, tasks=["digits", "shapes"], limit=64, device=device, output=out, **options)
        found[device] = load_file(out / "coefficients.safetensors")
    for name, wanted in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], wanted, rtol=0, atol=1e-3)
