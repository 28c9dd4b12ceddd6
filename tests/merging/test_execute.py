"""The engine against naive float64 merges of whole checkpoints: chunks, threads, dtypes, grids and kinds of tensors."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.merging import plan as engine
from taskmerge.methods.options import bind
from taskmerge.methods.registry import methods
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.seeds import uniform_at

R = TypeVar("R")

SHAPES = {
    "blocks.0.attn.weight": (24, 16),
    "blocks.0.attn.bias": (24,),
    "blocks.1.mlp.weight": (16, 40),
    "blocks.1.norm.weight": (16,),
    "conv.weight": (8, 3, 4, 4),
    "logit_scale": (),
    "proj": (16, 12),
    "token_embedding.weight": (30, 16),
    "empty": (0, 4),
}
TASKS = ("a", "b", "c", "d")


def checkpoints(folder: Path, dtype: torch.dtype = torch.float32, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    """base.safetensors and one expert a task; returns the base."""
    generator = torch.Generator().manual_seed(7)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    save_file({name: value.to(dtype) for name, value in base.items()}, folder / "base.safetensors")
    for task in tasks:
        tuned = {n: (v + 0.05 * torch.randn(v.shape, generator=generator)).to(dtype) for n, v in base.items()}
        save_file(tuned, folder / f"{task}.safetensors")
    return {name: value.to(dtype).double() for name, value in base.items()}


def experts(folder: Path, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    """The stacks of all experts in float64."""
    loaded = [load_file(folder / f"{task}.safetensors") for task in tasks]
    return {name: torch.stack([one[name].double() for one in loaded]) for name in SHAPES}


def inputs(folder: Path, tasks: tuple[str, ...] = TASKS) -> list[Path]:
    return [folder / f"{task}.safetensors" for task in ("base", *tasks)]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-12)) if wanted.numel() else 0.0


def test_average_is_the_mean(tmp_path: Path) -> None:
    checkpoints(tmp_path)
    taskmerge.merge(inputs(tmp_path), method="average", output=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for name, stack in experts(tmp_path).items():
        assert merged[name].shape == SHAPES[name]
        assert relative(merged[name], stack.sum(0) / len(TASKS)) < 1e-6, name


def test_weighted_average_follows_names(tmp_path: Path) -> None:
    checkpoints(tmp_path)
    weights = {"b": 3.0, "d": 0.0}
    taskmerge.merge(inputs(tmp_path), method="average", weights=weights, output=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for name, stack in experts(tmp_path).items():
        assert relative(merged[name], (stack[0] + 3 * stack[1] + stack[2]) / 5) < 1e-6, name


def test_task_arithmetic_is_its_formula(tmp_path: Path) -> None:
    base = checkpoints(tmp_path)
    taskmerge.merge(
        inputs(tmp_path),
        method="task_arithmetic",
        coefficient=-0.4,
        weights={"c": 2.0},
        output=tmp_path / "out.safetensors",
    )
    merged = load_file(tmp_path / "out.safetensors")
    for name, stack in experts(tmp_path).items():
        tau = stack - base[name]
        assert relative(merged[name], base[name] - 0.4 * (tau[0] + tau[1] + 2 * tau[2] + tau[3])) < 1e-6, name


def naive_cart(stack: Tensor, ratio: float, coefficient: float) -> Tensor:
    """θ̄ + λ Σ_t SVD_k(θ_t - θ̄), written out in float64."""
    mean = stack.sum(0) / len(stack)
    total = mean.clone()
    for one in stack:
        u, s, vt = torch.linalg.svd(one - mean, full_matrices=False)
        k = max(1, math.floor(ratio * len(s) + 1e-9))
        for i in range(k):
            total += coefficient * s[i] * torch.outer(u[:, i], vt[i])
    return total


def test_cart_truncates_matrices_of_blocks_and_averages_the_rest(tmp_path: Path) -> None:
    checkpoints(tmp_path)
    taskmerge.merge(inputs(tmp_path), method="cart", rank=0.2, coefficient=1.5, output=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    for name, stack in experts(tmp_path).items():
        linear = name in ("blocks.0.attn.weight", "blocks.1.mlp.weight")
        wanted = naive_cart(stack, 0.2, 1.5) if linear else stack.sum(0) / len(TASKS)
        assert relative(merged[name], wanted) < 1e-6, name


def test_also_widens_to_kernels_tables_and_projections(tmp_path: Path) -> None:
    checkpoints(tmp_path)
    taskmerge.merge(
        inputs(tmp_path),
        method="cart",
        rank=2,
        also=("conv", "embedding", "projection"),
        output=tmp_path / "out.safetensors",
    )
    merged = load_file(tmp_path / "out.safetensors")
    for name in ("conv.weight", "token_embedding.weight", "proj"):
        stack = experts(tmp_path)[name]
        flat = stack.reshape(len(stack), stack.shape[1], -1)
        wanted = naive_cart(flat, 2 / min(flat.shape[1:]), 1.0).reshape(SHAPES[name])
        assert relative(merged[name], wanted) < 1e-6, name


def by_kernel(name: str, stack: Tensor, base: Tensor, tensor: str, statistic: object) -> Tensor:
    """One tensor merged by the kernel itself, in float64 and in one piece."""
    declared = methods()[name]
    options = bind(declared, {})
    weights = torch.ones(len(stack), dtype=torch.float64)
    origin = {"weight": torch.zeros_like(base), "delta": base, "centred": stack.mean(0)}[declared.space]
    rows = stack - origin
    kernel = declared.kernel
    data: object = rows
    if declared.granularity(options) == "matrix":
        linear = tensor.startswith("blocks") and rows.ndim == 3
        data = TaskMatrices(rows) if linear else rows
        if not linear:
            if declared.elsewhere is None:
                return origin
            kernel = declared.elsewhere
    handed = {**options, "weights": weights, "statistic": statistic, "position": _position(tensor)}
    return origin + call(kernel, data, handed)


def call(kernel: object, data: object, handed: Mapping[str, object]) -> Tensor:
    from taskmerge.methods.kernel import accepted

    return kernel(data, **accepted(kernel, handed))  # type: ignore[operator,arg-type,no-any-return]


def _position(name: str) -> tuple[int, int] | None:
    return (int(name.split(".")[1]), 2) if name.startswith("blocks") else None


@pytest.mark.parametrize("chunk", [13, 64, 1 << 17])
@pytest.mark.parametrize("name", sorted(n for n, one in methods().items() if not one.random and one.gives == "merged"))
def test_every_method_through_files_is_its_kernel_on_whole_tensors(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, slicing, subtracting, adding and casting change nothing, whatever the size of a slice."""
    declared = methods()[name]
    tasks = TASKS[: declared.tasks[1] or len(TASKS)]
    base = checkpoints(tmp_path, tasks=tasks)
    monkeypatch.setattr(engine, "CHUNK", chunk)
    taskmerge.merge(
        inputs(tmp_path, tasks), method=name, compute_dtype="float64", dtype="F64", output=tmp_path / "o.safetensors"
    )
    merged = load_file(tmp_path / "o.safetensors")
    stacks = experts(tmp_path, tasks)
    statistic = None
    if declared.statistic is not None:
        from taskmerge.methods.kernel import accepted

        def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
            return (
                f((stack - base[n]).reshape(len(stack), -1)) for n, stack in sorted(stacks.items()) if stack.numel()
            )

        statistic = declared.statistic(scan, **accepted(declared.statistic, bind(declared, {})))
    for tensor, stack in stacks.items():
        wanted = by_kernel(name, stack, base[tensor], tensor, statistic) if stack.numel() else stack[0]
        assert merged[tensor].shape == wanted.shape
        assert relative(merged[tensor], wanted) < 1e-12, tensor


def test_dare_drops_by_seed_task_tensor_and_element(tmp_path: Path) -> None:
    base = checkpoints(tmp_path)
    taskmerge.merge(
        inputs(tmp_path), method="dare", density=0.5, coefficient=0.3, seed=3, output=tmp_path / "o.safetensors"
    )
    merged = load_file(tmp_path / "o.safetensors")
    for name, stack in experts(tmp_path).items():
        total = base[name].clone()
        for task, one in zip(TASKS, stack, strict=True):
            kept = uniform_at(3, task, name, 0, one.numel()).view(one.shape) < 0.5
            total += 0.3 * torch.where(kept, one - base[name], 0.0) / 0.5
        assert relative(merged[name], total) < 1e-6, name


@pytest.mark.parametrize("method", ["cart", "ties", "dare", "average", "tsv_m"])
def test_same_bytes_for_any_threads_and_order(method: str, tmp_path: Path) -> None:
    checkpoints(tmp_path, torch.float16)
    found = set()
    for index, threads in enumerate((1, 2, 4)):
        given = inputs(tmp_path)
        order = given[index:] + given[:index]
        out = tmp_path / "out" / f"{index}.safetensors"
        taskmerge.merge(order, method=method, threads=threads, output=out)
        found.add(sha(out))
    assert len(found) == 1


def test_a_grid_writes_the_bytes_of_single_runs(tmp_path: Path) -> None:
    checkpoints(tmp_path)
    receipt = taskmerge.merge(
        inputs(tmp_path), method="cart", rank="0.1,0.5", coefficient="0.5:1.0:0.5", output=tmp_path / "grid.safetensors"
    )
    assert [Path(path).name for path in receipt.paths] == [
        f"grid-coefficient{c}-rank{r}.safetensors" for c in ("0.5", "1.0") for r in ("0.1", "0.5")
    ]
    for path, (coefficient, rank) in zip(receipt.paths, [(c, r) for c in (0.5, 1.0) for r in (0.1, 0.5)], strict=True):
        single = tmp_path / "single.safetensors"
        taskmerge.merge(
            inputs(tmp_path), method="cart", rank=rank, coefficient=coefficient, output=single, overwrite=True
        )
        for name in SHAPES:
            assert relative(load_file(path)[name], load_file(single)[name].double()) < 1e-6


@pytest.mark.parametrize(
    ("method", "once", "grid"),
    [
        ("iso_c", {}, {"coefficient": (0.5, 1.0, 2.0)}),
        ("iso_c", {}, {"coefficient": (0.5, 1.0, 2.0), "lines": True, "beta": (0.1, 0.5)}),
        ("iso_cts", {}, {"coefficient": (0.5, 1.0, 2.0)}),
        (
            "iso_cts", {"common_fraction": (0.4, 0.9), "coefficient": 3.0},
            {"common_fraction": (0.9, 0.4), "coefficient": (1.0, 2.0)},
        ),
        ("cart", {}, {"coefficient": (0.5, 1.0, 2.0)}),
    ],
)  # fmt: skip
def test_a_grid_of_coefficients_factors_once(
    method: str, once: dict[str, object], grid: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many factorisations as without it; every point has the tensors of a run of its own."""
    checkpoints(tmp_path)
    solved: list[int] = []
    compute = TaskMatrices._compute

    def counting(self: TaskMatrices, tasks: Sequence[int], wanted: Sequence[int]) -> None:
        solved.extend(tasks)
        compute(self, tasks, wanted)

    monkeypatch.setattr(TaskMatrices, "_compute", counting)
    taskmerge.merge(inputs(tmp_path), method=method, output=tmp_path / "one.safetensors", **once)
    single = len(solved)
    receipt = taskmerge.merge(inputs(tmp_path), method=method, output=tmp_path / "grid.safetensors", **grid)
    assert len(solved) == 2 * single > 0
    for output in receipt.outputs:
        alone = tmp_path / "alone.safetensors"
        fixed = {key: value for key, value in grid.items() if key == "lines"}
        taskmerge.merge(inputs(tmp_path), method=method, output=alone, overwrite=True, **fixed, **output.options)
        for name, tensor in load_file(output.path).items():
            assert torch.equal(tensor, load_file(alone)[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_output_has_the_experts_dtype_and_rounds_once(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints(tmp_path, dtype)
    taskmerge.merge(inputs(tmp_path), method="average", output=tmp_path / "out.safetensors", compute_dtype="float64")
    merged = load_file(tmp_path / "out.safetensors")
    for name, stack in experts(tmp_path).items():
        assert merged[name].dtype == dtype
        torch.testing.assert_close(merged[name], stack.mean(0).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-12)


def test_provenance_names_tasks_digests_and_recipe_but_no_place_or_time(tmp_path: Path) -> None:
    import json

    checkpoints(tmp_path)
    taskmerge.merge(inputs(tmp_path), method="task_arithmetic", output=tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["taskmerge"])
    assert metadata["format"] == "pt"
    assert [one["name"] for one in record["tasks"]] == list(TASKS)
    assert all(one["digest"].startswith("sha256:") and one["tensors"] == len(SHAPES) for one in record["tasks"])
    assert record["base"]["digest"] not in {one["digest"] for one in record["tasks"]}
    assert record["recipe"]["method"] == "task_arithmetic"
    assert str(tmp_path) not in metadata["taskmerge"]


def test_lines_scales_merged_task_vectors_by_depth(tmp_path: Path) -> None:
    base = checkpoints(tmp_path)
    taskmerge.merge(inputs(tmp_path), method="task_arithmetic", lines=True, beta=0.5, output=tmp_path / "o.safetensors")
    merged = load_file(tmp_path / "o.safetensors")
    for name, stack in experts(tmp_path).items():
        depth = 0.25 + (0.5 * _position(name)[0] / 1 if _position(name) else 0.0)  # type: ignore[index]
        assert relative(merged[name], base[name] + depth * (stack - base[name]).sum(0)) < 1e-6, name
