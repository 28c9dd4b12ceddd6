"""One mixture of experts in two layouts, a tensor an expert or stacks of them: the same model, merged the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.options import RunOptions
from taskmerge.merging.prepare import prepare
from taskmerge.specs.merge import MergeSpec

PLACE = "model.layers.0.mlp.experts."
COUNT, SHAPE = 5, (12, 8)
TASKS = ("a", "b", "c")
SPECTRAL = ("cart", "truncated_task_arithmetic", "tsv_m", "iso_c", "iso_cts", "star")


@pytest.fixture
def layouts(tmp_path: Path) -> dict[str, list[Path]]:
    """The same models, numbered and stacked; the base comes first."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, list[Path]] = {"numbered": [], "stacked": []}
    for task in ("base", *TASKS):
        experts = [torch.randn(SHAPE, generator=generator) for _ in range(COUNT)]
        other = {"model.layers.0.self_attn.o_proj.weight": torch.randn(8, 8, generator=generator)}
        numbered = {f"{PLACE}{n}.down_proj.weight": matrix for n, matrix in enumerate(experts)}
        states = {"numbered": numbered, "stacked": {PLACE + "down_proj": torch.stack(experts)}}
        for layout, state in states.items():
            (tmp_path / layout).mkdir(exist_ok=True)
            save_file({**other, **state}, tmp_path / layout / f"{task}.safetensors")
            found[layout].append(tmp_path / layout / f"{task}.safetensors")
    return found


def experts_of(path: Path) -> Tensor:
    """[E, m, n], whatever the layout."""
    state = load_file(path)
    if PLACE + "down_proj" in state:
        return state[PLACE + "down_proj"]
    return torch.stack([state[f"{PLACE}{n}.down_proj.weight"] for n in range(COUNT)])


def merged(paths: list[Path], output: Path, **options: Any) -> Tensor:
    taskmerge.merge(paths, output=output, overwrite=True, **options)
    return experts_of(output)


@pytest.mark.parametrize("method", [*SPECTRAL, "slerp", "model_stock", "task_arithmetic", "ties", "magmax"])
def test_both_layouts_give_the_same_model_bit_for_bit(
    layouts: dict[str, list[Path]], tmp_path: Path, method: str
) -> None:
    take = 3 if method == "slerp" else 4
    results = [merged(layouts[name][:take], tmp_path / f"{name}.safetensors", method=method) for name in layouts]
    assert torch.equal(*results)


def test_a_grid_and_a_replay_of_it(layouts: dict[str, list[Path]], tmp_path: Path) -> None:
    for name, paths in layouts.items():
        taskmerge.merge(paths, method="cart", rank=(1, 4), output=tmp_path / name / "m.safetensors")
    for rank in (1, 4):
        files = [tmp_path / name / f"m-rank{rank}.safetensors" for name in layouts]
        assert torch.equal(*map(experts_of, files))
        assert taskmerge.verify(files[1], [layouts["stacked"][0].parent]).same_file


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize("rank", [8, 3])
def test_factors_of_stacks_take_their_experts_place(
    layouts: dict[str, list[Path]], tmp_path: Path, method: str, rank: int
) -> None:
    """Written at full rank, they give every method what the experts themselves give; U, s and Vt lie stacked."""
    base, *experts = layouts["stacked"]
    receipt = taskmerge.vectors(experts, base=base, rank=rank, output=tmp_path / "f")
    factors = load_file(receipt.paths[0])
    left, values, right = (factors[f"{PLACE}down_proj{part}"] for part in (".U", ".s", ".Vt"))
    assert (left.shape, right.shape) == ((COUNT, SHAPE[0], rank), (COUNT, rank, SHAPE[1]))
    product = (left * values[:, None]) @ right
    u, s, vt = torch.linalg.svd(experts_of(experts[0]).double() - experts_of(base).double(), full_matrices=False)
    best = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
    torch.testing.assert_close(product.double(), best, rtol=1e-4, atol=1e-5)
    if rank < min(SHAPE):
        return
    options = {"method": method, "base": base}
    plain = merged([*experts], tmp_path / "plain.safetensors", **options)
    again = merged([Path(path) for path in receipt.paths], tmp_path / "again.safetensors", **options)
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)


def test_vectors_of_stacks_apply_to_the_experts(layouts: dict[str, list[Path]], tmp_path: Path) -> None:
    base, first, *_ = layouts["stacked"]
    receipt = taskmerge.vectors([first], base=base, rank="energy:1.0", apply=True, output=tmp_path / "applied")
    torch.testing.assert_close(experts_of(Path(receipt.paths[0])), experts_of(first), rtol=1e-4, atol=1e-4)


def test_memory_and_plan_are_of_one_expert_at_a_time(layouts: dict[str, list[Path]], tmp_path: Path) -> None:
    plans = {}
    for name, paths in layouts.items():
        spec = MergeSpec(method="cart")
        prepared = prepare(paths, spec, InputOptions(), RunOptions(output=tmp_path / "m.safetensors"))
        prepared.inputs.close()
        plans[name] = prepared.plan
    stack = next(job for job in plans["stacked"].jobs if job.unit.kind == "stack")
    one = next(job for job in plans["numbered"].jobs if job.name.startswith(PLACE))
    assert stack.memory == one.memory
    assert ("stack", 1, COUNT * SHAPE[0] * SHAPE[1], "method") in plans["stacked"].classes()
    assert not any("treats" in note for note in plans["stacked"].notes)


@pytest.mark.parametrize("method", ["cart", "slerp", "average"])
def test_an_empty_stack_stays_empty(tmp_path: Path, method: str) -> None:
    state = {PLACE + "down_proj": torch.zeros(0, *SHAPE), "model.layers.0.mlp.gate.weight": torch.eye(8)}
    for task in TASKS[:2]:
        save_file(state, tmp_path / f"{task}.safetensors")
    paths = [tmp_path / f"{task}.safetensors" for task in TASKS[:2]]
    taskmerge.merge(paths, method=method, output=tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors")[PLACE + "down_proj"].shape == (0, *SHAPE)
