"""The methods whose definition fusion-bench shares must give what fusion-bench's own functions give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taskmerge.methods.registry import find
from taskmerge.numerics.spectral import TaskMatrices

pytestmark = pytest.mark.rivals

TASKS = 5
SHAPES = {"square": (48, 48), "tall": (96, 40), "wide": (40, 96), "vector": (33,)}

SCRIPT = """
from torch import nn
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.magmax.magmax import magmax_merge
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import state_dict_to_vector, ties_merging, vector_to_state_dict

names = sorted({name.split(".")[1] for name in given})
deltas = [{name: given[f"{task}.{name}"] for name in names} for task in range(options["tasks"])]
base = {name: given[f"base.{name}"] for name in names}

def put(method, tensors):
    result.update({f"{method}.{name}": tensor for name, tensor in tensors.items()})

put("tsv_m", compute_and_sum_svd_mem_reduction(deltas, accelerator="cpu"))
put("iso_c", iso_c(deltas, accelerator="cpu"))
put("iso_cts", iso_cts(deltas, 0.8, accelerator="cpu"))
flat = torch.vstack([state_dict_to_vector(delta) for delta in deltas])
for how in ("sum", "mean"):
    merged = ties_merging(flat.clone(), reset_thresh=20, merge_func=how)
    put("ties_" + how, vector_to_state_dict(merged, base))

def module(tensors):
    return nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in tensors.items()})

experts = [module({name: base[name] + delta[name] for name in names}) for delta in deltas]
put("magmax", magmax_merge(module(base), experts, scaling_factor=0.5, inplace=False).state_dict())
"""


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    """Task vectors `0.square` ... and base tensors `base.square` ..., float32."""
    generator = torch.Generator().manual_seed(20)
    rows = ["base", *map(str, range(TASKS))]
    return {f"{row}.{name}": torch.randn(shape, generator=generator) for row in rows for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def theirs(rival: Callable[..., dict[str, Tensor]], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """fusion-bench's results, `method.tensor`, all from one start of its Python."""
    return rival(SCRIPT, given, tasks=TASKS)


def stack(given: dict[str, Tensor], name: str) -> Tensor:
    return torch.stack([given[f"{task}.{name}"] for task in range(TASKS)])


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))


@pytest.mark.parametrize("name", ["square", "tall", "wide"])
@pytest.mark.parametrize(("method", "tolerance"), [("tsv_m", 2e-5), ("iso_c", 1e-4), ("iso_cts", 1e-4)])
def test_spectral_methods_agree_on_matrices(
    method: str, tolerance: float, name: str, given: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    ours = find(method).kernel(TaskMatrices(stack(given, name)))
    assert difference(ours, theirs[f"{method}.{name}"]) < tolerance


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts"])
def test_spectral_methods_agree_elsewhere(method: str, given: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    kernel = find(method).elsewhere
    assert kernel is not None
    ours = kernel(stack(given, "vector"), torch.ones(TASKS).double())
    assert difference(ours, theirs[f"{method}.vector"]) < 1e-6


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_ties_agrees_on_the_whole_model(aggregate: str, given: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    names = sorted(SHAPES)
    flat = torch.cat([stack(given, name).flatten(1) for name in names], dim=1)
    # Their threshold is the magnitude after the last one asked for: one entry more than 20 percent is kept.
    ours = find("ties").kernel(
        flat, torch.ones(TASKS).double(), density=0.2, aggregate=aggregate, coefficient=1.0, threshold="next"
    )
    expected = torch.cat([theirs[f"ties_{aggregate}.{name}"].flatten() for name in names])
    assert torch.equal(ours != 0, expected != 0)
    assert difference(ours, expected) < 1e-6


@pytest.mark.parametrize("name", list(SHAPES))
def test_magmax_agrees(name: str, given: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    base = given[f"base.{name}"]
    deltas = base + stack(given, name) - base  # as they see them: rounded when the experts were stored
    assert difference(base + find("magmax").kernel(deltas, coefficient=0.5), theirs[f"magmax.{name}"]) < 1e-6
