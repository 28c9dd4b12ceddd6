"""The same merges by mergekit and fusion-bench, in their own Python (TASKMERGE_RIVALS), where definitions coincide."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from elementwise_cases import ones
from torch import Tensor

from taskmerge.methods.breadcrumbs import breadcrumbs
from taskmerge.methods.dare import dare
from taskmerge.methods.magmax import magmax
from taskmerge.methods.model_stock import model_stock
from taskmerge.methods.slerp import slerp
from taskmerge.methods.task_arithmetic import task_arithmetic
from taskmerge.methods.ties import ties
from taskmerge.seeds import uniform_at

RIVALS = os.environ.get("TASKMERGE_RIVALS")
pytestmark = [
    pytest.mark.rivals,
    pytest.mark.skipif(not RIVALS, reason="TASKMERGE_RIVALS names no Python with mergekit and fusion-bench"),
]
TASKS, ROWS, COLUMNS = 5, 40, 30
SCRIPT = """
import sys
import numpy as np, torch
given = np.load(sys.argv[1])
base, experts = torch.from_numpy(given["base"]), torch.from_numpy(given["experts"])
deltas = experts - base
answers = {}

from mergekit.merge_methods.slerp import slerp
for t in (0.0, 0.3, 0.5, 1.0):
    answers[f"slerp {t}"] = slerp(torch.tensor([t]), experts[:1], experts[1:2])[0]

from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.model_stock import model_stock_merge_method as stock
near = [base, *(base + deltas + deltas[:1])]
(answers["model_stock"],) = stock([TensorGroup.from_tensors(near, base_index=0)])

from mergekit.sparsify import bernoulli, magnitude, magnitude_outliers
torch.manual_seed(0)
answers["dare mean"] = sum(bernoulli(deltas, 0.7) / 0.7 for _ in range(3000)) / 3000
answers["magnitude"] = torch.stack([magnitude(one, 0.2) for one in deltas])
answers["outliers"] = torch.stack([magnitude_outliers(one, 0.2, gamma=0.1) for one in deltas])

from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
for kind in ("sum", "mean"):
    answers[f"ties {kind}"] = ties_merging(deltas.flatten(1).clone(), 20, kind).view(base.shape)

from fusion_bench.method.magmax.magmax import _magmax_select
answers["magmax"] = _magmax_select([{"w": one} for one in deltas])["w"]
np.savez(sys.argv[2], **{name: value.numpy() for name, value in answers.items()})
"""


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, COLUMNS, generator=generator)
    return {"base": base, "experts": base + 0.5 * torch.randn(TASKS, ROWS, COLUMNS, generator=generator)}


@pytest.fixture(scope="module")
def answers(given: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder: Path = tmp_path_factory.mktemp("rivals")
    np.savez(folder / "given.npz", **{name: value.numpy() for name, value in given.items()})
    command = [str(RIVALS), "-c", SCRIPT, str(folder / "given.npz"), str(folder / "answers.npz")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {name: torch.from_numpy(value) for name, value in np.load(folder / "answers.npz").items()}


@pytest.fixture(scope="module")
def deltas(given: dict[str, Tensor]) -> Tensor:
    return given["experts"] - given["base"]


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_is_mergekits(given: dict[str, Tensor], answers: dict[str, Tensor], t: float) -> None:
    assert torch.allclose(slerp(given["experts"][:2], t=t), answers[f"slerp {t}"], atol=1e-5)


def test_model_stock_is_mergekits(given: dict[str, Tensor], deltas: Tensor, answers: dict[str, Tensor]) -> None:
    found = given["base"] + model_stock(deltas + deltas[:1])
    assert torch.allclose(found, answers["model_stock"], atol=1e-5)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_ties_over_the_model_is_fusion_benchs(deltas: Tensor, answers: dict[str, Tensor], aggregate: str) -> None:
    found = ties(deltas, ones(deltas), density=0.2, aggregate=aggregate, coefficient=1.0, threshold="next")
    assert torch.allclose(found, answers[f"ties {aggregate}"], atol=1e-6)


def test_trimming_a_tensor_is_mergekits(deltas: Tensor, answers: dict[str, Tensor]) -> None:
    found = [ties(one[None], ones(one[None]), density=0.2, scope="tensor") for one in deltas]
    assert torch.equal(torch.stack(found), answers["magnitude"])


def test_breadcrumbs_of_a_tensor_is_mergekits(deltas: Tensor, answers: dict[str, Tensor]) -> None:
    assert torch.equal(breadcrumbs(deltas, drop_top=0.1, density=0.2, scope="tensor"), answers["outliers"])


def test_magmax_is_fusion_benchs(deltas: Tensor, answers: dict[str, Tensor]) -> None:
    assert torch.equal(magmax(deltas, coefficient=1.0), answers["magmax"])


def test_mean_of_dare_over_seeds_is_mergekits(deltas: Tensor, answers: dict[str, Tensor]) -> None:
    total, seeds = torch.zeros_like(deltas), 3000
    for seed in range(seeds):
        rows = [uniform_at(seed, str(task), "w", 0, ROWS * COLUMNS).view(ROWS, COLUMNS) for task in range(TASKS)]
        total += dare(deltas, lambda kept=rows: torch.stack(kept), density=0.7)
    noise = deltas.abs().max() * (0.3 / 0.7 / seeds) ** 0.5
    assert float((total / seeds - answers["dare mean"]).abs().max()) < 6.5 * 2**0.5 * noise
    expected = task_arithmetic(deltas, ones(deltas))
    assert float((task_arithmetic(total / seeds, ones(deltas)) - expected).abs().max()) < 6.5 * 0.3 * TASKS * noise
