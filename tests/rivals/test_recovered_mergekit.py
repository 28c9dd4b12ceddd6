"""`recover` on merges that mergekit's own functions made: in float32, and in the arithmetic of 16-bit types."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import taskmerge

pytestmark = pytest.mark.rivals

SHAPE = (300, 200)
NAME = "blocks.0.fc.weight"
WEIGHTS = [0.1, 0.2, 0.4, 0.3]
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCRIPT = """
from mergekit.merge_methods import merge_tensors

for kind in options["kinds"]:
    cast = lambda tensor: tensor.to(getattr(torch, kind))
    base, experts = cast(given["base"]), [cast(given[str(task)]) for task in range(4)]
    result[f"linear {kind}"] = merge_tensors(experts, "linear", parameters={"weight": options["weights"]})
    result[f"free {kind}"] = merge_tensors(
        experts, "linear", parameters={"weight": [2 * one for one in options["weights"]], "normalize": False}
    )
    about = {"tensors": [base, *experts], "base_index": 0}
    result[f"task_arithmetic {kind}"] = merge_tensors(
        method="task_arithmetic", parameters={"weight": options["weights"], "lambda": 0.8}, **about
    )
    result[f"ties {kind}"] = merge_tensors(
        method="ties", parameters={"weight": options["weights"], "density": 0.3}, **about
    )
"""


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(4)
    base = 0.05 * torch.randn(SHAPE, generator=drawn)
    return {"base": base, **{str(task): base + 0.005 * torch.randn(SHAPE, generator=drawn) for task in range(4)}}


@pytest.fixture(scope="module")
def theirs(rival: Callable[..., dict[str, Tensor]], given: dict[str, Tensor]) -> dict[str, Tensor]:
    return rival(SCRIPT, given, kinds=list(KINDS), weights=WEIGHTS)


def recovered(theirs: dict[str, Tensor], given: dict[str, Tensor], method: str, kind: str) -> taskmerge.Recovery:
    states = {name: {NAME: one.to(KINDS[kind])} for name, one in given.items()}
    base = states.pop("base")
    return taskmerge.recover({NAME: theirs[f"{method} {kind}"]}, states, base=base)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("method", "scale"), [("linear", 1.0), ("task_arithmetic", 0.8)])
def test_a_linear_merge_comes_back(
    theirs: dict[str, Tensor], given: dict[str, Tensor], method: str, scale: float, kind: str
) -> None:
    found = recovered(theirs, given, method, kind)
    assert found.verdict in (("linear",) if kind == "float32" else ("linear", "unclear"))
    wanted = [scale * one for one in WEIGHTS]
    margin = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}[kind]
    assert list(found.fits["least squares"].coefficients) == pytest.approx(wanted, abs=margin)


def test_weights_that_were_not_normalised_come_back(theirs: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    found = recovered(theirs, given, "free", "float32")
    assert (found.verdict, found.form) == ("linear", "scaled")
    assert list(found.coefficients.values()) == pytest.approx([2 * one for one in WEIGHTS], abs=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_ties_is_no_linear_merge(theirs: dict[str, Tensor], given: dict[str, Tensor], kind: str) -> None:
    found = recovered(theirs, given, "ties", kind)
    assert (found.verdict, found.pointers) == ("not linear", ("sparse",))
