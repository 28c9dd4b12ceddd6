"""TSV-M, Iso-C and Iso-CTS on real experts (TASKMERGE_EXPERTS) against the published formulas in plain float64."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.methods.iso_c import iso_c
from taskmerge.methods.iso_cts import iso_cts
from taskmerge.methods.kernel import Kernel
from taskmerge.methods.tsv_m import tsv_m
from taskmerge.numerics.spectral import TaskMatrices

HOME = Path(os.environ.get("TASKMERGE_EXPERTS") or "none") / "vision"
pytestmark = pytest.mark.skipif(not HOME.is_dir(), reason="TASKMERGE_EXPERTS names no experts")
BLOCK = "visual.transformer.resblocks."
NAMES = [  # σ_min/σ_max of the directions side by side is 1.7e-5, 1.9e-5, 7e-5 and 7e-4 there
    BLOCK + "1.attn.in_proj_weight",
    BLOCK + "5.attn.out_proj.weight",
    BLOCK + "1.mlp.c_fc.weight",
    BLOCK + "3.mlp.c_proj.weight",
]


@pytest.fixture(scope="module")
def stacks() -> dict[str, Tensor]:
    """The task vectors of some matrices, [task, m, n] in float32."""
    base = load_file(HOME / "base.safetensors")
    experts = [load_file(path) for path in sorted(HOME.glob("*.safetensors")) if path.stem != "base"]
    return {name: torch.stack([expert[name].float() - base[name].float() for expert in experts]) for name in NAMES}


def orthogonal(array: np.ndarray) -> np.ndarray:
    """P Qᵀ of P S Qᵀ, all of it."""
    p, _, qt = np.linalg.svd(array, full_matrices=False)
    return p @ qt


def tsv_m_by_hand(deltas: np.ndarray) -> np.ndarray:
    """Gargiulo et al.: the first r/T components of every task, both sides made orthonormal."""
    k = min(deltas.shape[1:]) // len(deltas)
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = np.concatenate([u[:, :k] for u, _, _ in parts], axis=1)
    values = np.concatenate([s[:k] for _, s, _ in parts])
    right = np.concatenate([vt[:k] for _, _, vt in parts])
    return orthogonal(left) * values @ orthogonal(right)


def iso_c_by_hand(deltas: np.ndarray) -> np.ndarray:
    """Marczak et al.: the sum with all singular values at their mean."""
    u, s, vt = np.linalg.svd(deltas.sum(0), full_matrices=False)
    return s.mean() * u @ vt


def iso_cts_by_hand(deltas: np.ndarray) -> np.ndarray:
    """Marczak et al.: 0.8 of the directions from the sum, the rest from what the tasks have outside them."""
    tasks, r = len(deltas), min(deltas.shape[1:])
    each = round((r - int(0.8 * r)) / tasks)
    common = r - each * tasks
    u, s, vt = np.linalg.svd(deltas.sum(0), full_matrices=False)
    u, s, vt = u[:, :common], s[:common], vt[:common]
    own = [np.linalg.svd(delta - u @ (u.T @ delta), full_matrices=False) for delta in deltas]
    left = np.concatenate([*(part[:, :each] for part, _, _ in own), u], axis=1)
    values = np.concatenate([*(part[:each] for _, part, _ in own), s])
    right = np.concatenate([*(part[:each] for _, _, part in own), vt])
    return values.mean() * orthogonal(left) @ orthogonal(right)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kernel", "by_hand"), [(tsv_m, tsv_m_by_hand), (iso_c, iso_c_by_hand), (iso_cts, iso_cts_by_hand)],
    ids=["tsv_m", "iso_c", "iso_cts"],
)  # fmt: skip
def test_real_matrices_come_out_as_published(
    kernel: Kernel, by_hand: Callable[[np.ndarray], np.ndarray], name: str, stacks: dict[str, Tensor]
) -> None:
    stack = stacks[name]
    expected = by_hand(stack.double().numpy())
    for dtype, tolerance in ((torch.float32, 1.5e-5), (torch.float64, 1e-7)):
        result = kernel(TaskMatrices(stack.to(dtype))).double().numpy()
        assert np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected)
