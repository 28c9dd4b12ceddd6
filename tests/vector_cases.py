"""Small models for the tests of task vectors and of verification, and naive float64 arithmetic on them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES: dict[str, tuple[int, ...]] = {
    "blocks.0.attn.weight": (24, 16),
    "blocks.0.attn.bias": (24,),
    "blocks.1.mlp.weight": (16, 40),
    "conv.weight": (8, 3, 4, 4),
    "logit_scale": (),
    "proj": (16, 12),
    "empty": (0, 4),
}
COUNTER = "bn.num_batches_tracked"
TASKS = ("a", "b", "c", "d")


def write_models(folder: Path, dtype: torch.dtype = torch.float32, tasks: Sequence[str] = TASKS) -> dict[str, Path]:
    """base.safetensors and TASK.safetensors, small random steps away from it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(11)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    models = {"base": base}
    for task in tasks:
        models[task] = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in base.items()}
    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.safetensors"
        save_file({**{n: v.to(dtype) for n, v in model.items()}, COUNTER: torch.tensor(7)}, paths[name])
    return paths


def experts(paths: Mapping[str, Path]) -> list[Path]:
    """The paths of all experts."""
    return [path for name, path in paths.items() if name != "base"]


def load(path: Path | str) -> dict[str, Tensor]:
    return dict(load_file(path))


def record_of(path: Path | str) -> dict[str, Any]:
    """The provenance that a file carries."""
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["taskmerge"]))


def resealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record under a seal of its own: the SHA-256 of all other entries as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**rest, "seal": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}


def truncated(matrix: Tensor, k: int) -> Tensor:
    """SVD_k in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :k] * s[:k]) @ vt[:k]


def relative(got: Tensor, wanted: Tensor) -> float:
    """‖got - wanted‖ / ‖wanted‖ in float64."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def agrees(got: Path | str, wanted: Path | str, tolerance: float) -> bool:
    """Whether two checkpoints have the same tensors, of the same dtypes, up to a relative error."""
    one, other = load(got), load(wanted)
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and (not other[n].numel() or relative(one[n], other[n]) <= tolerance)
        for n in other
    )


def same(got: Path | str, wanted: Path | str) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    one, other = load(got), load(wanted)
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in other
    )


def changed_record(path: Path, **record: Any) -> None:
    """The same file with another provenance, sealed again where it was."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    said = {**json.loads(metadata["taskmerge"]), **record}
    metadata["taskmerge"] = json.dumps(resealed(said) if "seal" in said else said)
    save_file(load(path), path, metadata)
