"""The methods whose definition mergekit shares must give what mergekit's own functions give."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taskmerge.methods.registry import find
from taskmerge.seeds import uniform_at

pytestmark = pytest.mark.rivals

TASKS = 3
SCOPES = {
    "tensor": {},
    "row": {"nuslerp_flatten": False},
    "column": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}
SHAPE = (64, 48)
WEIGHTS = [0.5, 1.0, 2.5]
SEEDS = 200
DENSITY = 0.8

SCRIPT = """
from mergekit.merge_methods import merge_tensors

base, experts = given["base"], [given[str(task)] for task in range(options["tasks"])]
weights = options["weights"]
about = {"tensors": [base, *experts], "base_index": 0}

result["linear"] = merge_tensors(experts, "linear", parameters={"weight": weights})
result["task_arithmetic"] = merge_tensors(
    method="task_arithmetic", parameters={"weight": weights, "lambda": 0.3}, **about
)
for t in options["points"]:
    result[f"slerp {t}"] = merge_tensors(experts[:2], "slerp", parameters={"t": t}, base_index=0)
result["slerp parallel"] = merge_tensors([base, 3 * base], "slerp", parameters={"t": 0.3}, base_index=0)
for scope, parameters in options["scopes"].items():
    result[f"nuslerp {scope}"] = merge_tensors(
        tensors=[base, *experts[:2]], method="nuslerp", base_index=0, parameters={"weight": weights[:2], **parameters}
    )
    result[f"nuslerp {scope} 4-D"] = merge_tensors(
        tensors=[tensor.view(8, 6, 8, 8) for tensor in (base, *experts[:2])], method="nuslerp", base_index=0,
        parameters={"weight": weights[:2], **parameters},
    )
result["karcher"] = merge_tensors(experts, "karcher", parameters={"max_iter": 100, "tol": 1e-7})
result["karcher opposed"] = merge_tensors([base, -base], "karcher")
result["model_stock"] = merge_tensors(method="model_stock", **about)
total = torch.zeros_like(base, dtype=torch.float64)
for seed in range(options["seeds"]):
    torch.manual_seed(seed)
    total += merge_tensors(
        method="dare_linear", parameters={"weight": 1.0, "density": options["density"]}, **about
    ).double()
result["dare mean"] = (total / options["seeds"]).float()
"""


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    """A base and experts that share a part of their change, so that their angles are below 90 degrees."""
    generator = torch.Generator().manual_seed(21)
    base, shared = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    own = {str(task): base + shared + torch.randn(SHAPE, generator=generator) for task in range(TASKS)}
    return {"base": base, **own}


@pytest.fixture(scope="module")
def theirs(rival: Callable[..., dict[str, Tensor]], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """mergekit's results, all from one start of its Python."""
    options = {
        "tasks": TASKS,
        "weights": WEIGHTS,
        "points": [0.0, 0.3, 1.0],
        "seeds": SEEDS,
        "density": DENSITY,
        "scopes": SCOPES,
    }
    return rival(SCRIPT, given, **options)


@pytest.fixture(scope="module")
def experts(given: dict[str, Tensor]) -> Tensor:
    return torch.stack([given[str(task)] for task in range(TASKS)])


@pytest.fixture(scope="module")
def deltas(given: dict[str, Tensor], experts: Tensor) -> Tensor:
    return experts - given["base"]


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))


def test_linear_agrees_with_the_weighted_average(experts: Tensor, theirs: dict[str, Tensor]) -> None:
    ours = find("average").kernel(experts, torch.tensor(WEIGHTS).double())
    assert difference(ours, theirs["linear"]) < 1e-6


def test_task_arithmetic_agrees(given: dict[str, Tensor], deltas: Tensor, theirs: dict[str, Tensor]) -> None:
    ours = given["base"] + find("task_arithmetic").kernel(deltas, torch.tensor(WEIGHTS).double(), coefficient=0.3)
    assert difference(ours, theirs["task_arithmetic"]) < 1e-6


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_agrees(t: float, experts: Tensor, theirs: dict[str, Tensor]) -> None:
    assert difference(find("slerp").kernel(experts[:2], t=t), theirs[f"slerp {t}"]) < 1e-6


def test_slerp_agrees_on_parallel_tensors(given: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    ours = find("slerp").kernel(torch.stack([given["base"], 3 * given["base"]]), t=0.3)
    assert difference(ours, theirs["slerp parallel"]) < 1e-6


@pytest.mark.parametrize("scope", SCOPES)
def test_nuslerp_agrees(scope: str, given: dict[str, Tensor], deltas: Tensor, theirs: dict[str, Tensor]) -> None:
    weights = torch.tensor(WEIGHTS[:2]).double()
    for label, shape in (("", SHAPE), (" 4-D", (8, 6, 8, 8))):
        ours = find("nuslerp").kernel(deltas[:2].view(2, *shape), weights, scope=scope)
        assert difference(given["base"].view(shape) + ours, theirs[f"nuslerp {scope}{label}"]) < 1e-6


def test_karcher_agrees(experts: Tensor, theirs: dict[str, Tensor]) -> None:
    assert difference(find("karcher").kernel(experts, torch.ones(TASKS).double()), theirs["karcher"]) < 1e-6


def test_karcher_of_opposite_tensors_is_their_average_here_and_the_first_there(
    given: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    opposed = torch.stack([given["base"], -given["base"]])
    assert not find("karcher").kernel(opposed, torch.ones(2).double()).any()
    assert difference(given["base"], theirs["karcher opposed"]) < 1e-6


def test_model_stock_agrees_below_ninety_degrees(
    given: dict[str, Tensor], deltas: Tensor, theirs: dict[str, Tensor]
) -> None:
    ours = given["base"] + find("model_stock").kernel(deltas)
    assert difference(ours, theirs["model_stock"]) < 1e-6


def test_the_mean_of_dare_over_seeds_agrees(
    given: dict[str, Tensor], deltas: Tensor, theirs: dict[str, Tensor]
) -> None:
    """Both means miss task arithmetic by sqrt((1 - p) / (p N)) of the task vectors' norm, as independent masks do."""

    def masks(seed: int) -> Tensor:
        rows = [uniform_at(seed, str(task), "weight", 0, deltas[0].numel()) for task in range(TASKS)]
        return torch.stack(rows).reshape(deltas.shape)

    total = torch.zeros(SHAPE, dtype=torch.float64)
    for seed in range(SEEDS):
        dropped = find("dare").kernel(deltas, lambda seed=seed: masks(seed), density=DENSITY)
        total += find("task_arithmetic").kernel(dropped, torch.ones(TASKS).double(), coefficient=1.0)
    exact = deltas.double().sum(0)
    expected = math.sqrt((1 - DENSITY) / (DENSITY * SEEDS)) * float(torch.linalg.vector_norm(deltas))
    for mean in (total / SEEDS, theirs["dare mean"].double() - given["base"]):
        assert float(torch.linalg.vector_norm(mean - exact)) == pytest.approx(expected, rel=0.1)
