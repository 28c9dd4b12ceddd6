"""Small models with every kind of tensor, things learnt of them at random, and what they should give: in float64."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import taskmerge
from taskmerge.checkpoint.adapted import Manifest, Part, write_manifest
from taskmerge.checkpoint.learned import write_learned
from taskmerge.checkpoint.tensors import write_tensors
from taskmerge.methods.composed import Learned
from taskmerge.specs.recipe_file import recipe_text
from vector_cases import record_of

Qkv = Literal["as-is", "split", "fused"]
BLOCK = "visual.transformer.resblocks.0."
LAYER = "text.layers.0."
SHAPES: dict[str, tuple[int, ...]] = {
    BLOCK + "attn.in_proj_weight": (36, 12),
    BLOCK + "attn.in_proj_bias": (36,),
    BLOCK + "attn.out_proj.weight": (12, 12),
    LAYER + "self_attn.q_proj.weight": (8, 10),
    LAYER + "self_attn.k_proj.weight": (8, 10),
    LAYER + "self_attn.v_proj.weight": (8, 10),
    LAYER + "mlp.experts.down_proj": (3, 10, 6),
    LAYER + "norm.weight": (8,),
    "visual.conv1.weight": (5, 3, 2, 2),
    "visual.proj": (12, 7),
    "logit_scale": (),
}
COUNTER = "bn.num_batches_tracked"
TRIO = tuple(f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv")
TASKS = ("cars", "digits", "signs")
State = dict[str, Tensor]


def write_models(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 3) -> dict[str, Path]:
    """base.safetensors and TASK.safetensors of every task."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    paths = {}
    for name in ("base", *TASKS):
        step = 0.0 if name == "base" else 0.1
        model = {n: (v + step * torch.randn(v.shape, generator=generator)).to(dtype) for n, v in base.items()}
        paths[name] = folder / f"{name}.safetensors"
        save_file({**model, COUNTER: torch.tensor(7)}, paths[name])
    return paths


def experts(models: Mapping[str, Path]) -> list[Path]:
    """The paths of all experts."""
    return [models[task] for task in TASKS]


def weights(models: Mapping[str, Path]) -> tuple[State, dict[str, Tensor]]:
    """The base, and the stacks [T, *shape] of all experts, in float64."""
    states = {name: load_file(path) for name, path in models.items()}
    base = {name: states["base"][name].double() for name in SHAPES}
    return base, {name: torch.stack([states[task][name].double() for task in TASKS]) for name in SHAPES}


def matrices(qkv: Qkv) -> dict[str, tuple[int, ...]]:
    """(M, m, n) of the matrices of blocks, by the name of their unit."""
    found = {
        BLOCK + "attn.in_proj_weight": (3, 12, 12) if qkv == "split" else (1, 36, 12),
        BLOCK + "attn.out_proj.weight": (1, 12, 12),
        LAYER + "mlp.experts.down_proj": (3, 10, 6),
    }
    return found | ({TRIO[0]: (1, 24, 10)} if qkv == "fused" else dict.fromkeys(TRIO, (1, 8, 10)))


def names(qkv: Qkv) -> list[str]:
    """The names of all units that are merged."""
    return [name for name in SHAPES if not (qkv == "fused" and name in TRIO[1:])]


def learned(qkv: Qkv = "as-is", k: int | None = None, seed: int = 5) -> Learned:
    """Coefficients at random, and masks of k components where k is given."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = {name: torch.randn(len(TASKS), generator=generator) for name in names(qkv)}
    if k is None:
        return Learned(TASKS, coefficients)
    masks = {
        name: torch.rand(shape[0], len(TASKS), min(k, *shape[1:]), generator=generator) < 0.6
        for name, shape in matrices(qkv).items()
    }
    return Learned(TASKS, coefficients, masks)


def masked(share: float = 0.5, seed: int = 6) -> Learned:
    """Coefficients at random, and a mask of every tensor's entries that keeps about such a share."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, shape in SHAPES.items():
        bits = torch.rand(math.prod(shape), generator=generator) < share
        masks[name] = (bits if bool(bits.any()) else ~bits).view(1, 1, -1)
    return Learned(TASKS, learned().coefficients, masks)


def constant(value: float, qkv: Qkv = "as-is", k: int | None = None) -> Learned:
    """One coefficient everywhere, and all bits one."""
    plain = learned(qkv, k)
    masks = {name: torch.ones_like(mask) for name, mask in plain.masks.items()}
    return Learned(TASKS, {name: torch.full((len(TASKS),), value) for name in plain.coefficients}, masks)


def expected(
    origin: State, stacks: Mapping[str, Tensor], what: Learned, qkv: Qkv = "as-is", k: int | None = None
) -> State:
    """origin + Σ_t λ_t D_t, one component at a time; dense everywhere without `k`."""
    result: State = {}
    factored = {} if k is None else matrices(qkv)
    for name in names(qkv):
        parts = TRIO if qkv == "fused" and name == TRIO[0] else (name,)
        rows = torch.cat([stacks[part] - origin[part] for part in parts], dim=1) if SHAPES[name] else stacks[name]
        rows = rows if SHAPES[name] else rows - origin[name]
        scales = what.coefficients.get(name, torch.zeros(len(TASKS))).double()
        if name in factored:
            shaped = rows.reshape(len(TASKS), *factored[name]).transpose(0, 1)
            masks = what.masks.get(name)
            step = torch.stack([
                _kept(stack, scales, k or 0, None if masks is None else masks[index])
                for index, stack in enumerate(shaped)
            ]).reshape(rows.shape[1:])  # fmt: skip
        else:
            step = sum((scale * row for scale, row in zip(scales, rows, strict=True)), torch.zeros_like(rows[0]))
            if name in what.masks:
                bits = what.masks[name].double().view(step.shape)
                step = step * bits / bits.mean()
        sizes = [SHAPES[part][0] for part in parts] if len(parts) > 1 else None
        pieces = [step] if sizes is None else list(step.split(sizes))
        result |= {part: origin[part] + piece for part, piece in zip(parts, pieces, strict=True)}
    return result


def _kept(stack: Tensor, scales: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """Σ_t λ_t Σ_i b_ti s_ti u_ti v_tiᵀ of the matrices [T, m, n]."""
    total = torch.zeros_like(stack[0])
    for task, matrix in enumerate(stack):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        for i in range(min(k, len(s))):
            if mask is None or bool(mask[task, i]):
                total += scales[task] * s[i] * torch.outer(u[:, i], vt[i])
    return total


def close(path: Path | str, wanted: State, tolerance: float) -> bool:
    """Whether a file holds these tensors, up to a share of each one's size."""
    got = load_file(path)
    far = {name: _relative(got[name].double(), value) for name, value in wanted.items()}
    return got.keys() == {*wanted, COUNTER} and max(far.values()) <= tolerance


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-12)) if got.shape == wanted.shape else float("inf")


def changed(what: Learned, change: Callable[[State, State], None]) -> Learned:
    """The same with other coefficients or masks."""
    coefficients, masks = dict(what.coefficients), dict(what.masks)
    change(coefficients, masks)
    return Learned(what.tasks, coefficients, masks)


# --- folders that `adapt` writes -------------------------------------------------------------------------------


def adapted(
    models: Mapping[str, Path], folder: Path, method: str = "composed_base", *, qkv: Qkv = "as-is",
    k: int | None = None, what: Learned | None = None, blocks: Mapping[str, State] | None = None, **options: Any,
) -> Path:  # fmt: skip
    """A whole folder: what was learnt, its model, a head of every task, blocks, recipe, trace and report."""
    folder.mkdir(parents=True)
    what = what or learned(qkv, k)
    write_learned(folder, what)
    given = {**options, **({} if k is None else {"rank": k})}
    base = None if method == "composed_mean" else models["base"]
    model = folder / "model.safetensors"
    taskmerge.merge(experts(models), method=method, base=base, learned=what, qkv=qkv, output=model, **given)
    places = {task: models[task] for task in TASKS}
    (folder / "recipe.yaml").write_text(recipe_text(record_of(model)["recipe"], places, base, folder))
    for task in TASKS:
        write_tensors(folder / "heads" / f"{task}.safetensors", {"weight": torch.ones(2, 7)}, {"kind": "head"})
    for task, block in (blocks or {}).items():
        write_tensors(folder / "blocks" / f"{task}.safetensors", block, {"kind": "block"})
    (folder / "trace.jsonl").write_text('{"update":0}\n')
    (folder / "report.json").write_text("{}\n")
    parts: list[Part] = ["coefficients", "heads", "recipe", "trace", "report"]
    parts += (["masks"] if what.masks else []) + (["blocks"] if blocks else [])
    manifest = Manifest(method="adamerging", needs_task_index=bool(blocks), parts=tuple(parts), protocol="test")
    write_manifest(folder, manifest)
    return folder
