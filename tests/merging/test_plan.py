"""The plan: what a chain of methods reads at a time, by each method's own options."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from taskmerge.experts.inputs import InputOptions
from taskmerge.merging.merge import prepare
from taskmerge.merging.options import RunOptions
from taskmerge.merging.plan import Plan
from taskmerge.methods import registry
from taskmerge.methods.contract import declaration, method
from taskmerge.methods.options import Option
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.specs.merge import MergeSpec
from taskmerge.types import Stack

Share = Annotated[float, Option("share kept", low=0, high=1)]


@method(
    space="delta", reads=lambda options: "tensor" if float(str(options["density"])) < 0.5 else "elements",
    title="whole tensors where few are kept", formula="", paper="none",
)  # fmt: skip
def picky(stack: Stack, *, density: Share = 1.0) -> Stack:
    """The sum, of whole tensors under a small density."""
    return stack.sum(0) * density


@method(
    space="delta", reads="elements", title="a transform with a rank", formula="", paper="none", gives="task_vectors"
)
def ranked(stack: Stack, *, rank: Annotated[Rank, Option("of nothing")] = Rank.parse(1)) -> Stack:
    """As it is."""
    return stack.clone()


@method(space="delta", reads="matrix", title="a spectral method", formula="", paper="none")
def truncating(matrices: TaskMatrices, *, rank: Annotated[Rank, Option("of each matrix")] = Rank.parse(2)) -> Tensor:
    """Never called."""
    raise AssertionError


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[MergeSpec], Plan]:
    """Plans a merge of two experts by methods of the package and of a plug-in."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "cars", "dogs"):
        save_file({"blocks.0.fc.weight": torch.zeros(4, 4)}, f"{name}.safetensors")
    plugged = {one.name: one for one in map(declaration, (picky, ranked, truncating))}
    known = registry.methods()
    monkeypatch.setattr(registry, "methods", lambda: {**known, **plugged})

    def plan(spec: MergeSpec) -> Plan:
        prepared = prepare(
            ["cars.safetensors", "dogs.safetensors"], spec, InputOptions(base=Path("base.safetensors")), RunOptions()
        )
        prepared.inputs.close()
        return prepared.plan

    return plan


@pytest.mark.parametrize(
    ("density", "then_density", "reads"),
    [
        ((0.9,), (0.2,), "tensor"),
        ((0.2,), (0.9,), "elements"),
        ((0.9,), (0.9, 0.2), "tensor"),
        ((0.2,), None, "elements"),
    ],
)
def test_every_method_of_a_chain_is_asked_with_its_own_options(
    planned: Callable[[MergeSpec], Plan], density: tuple[float, ...], then_density: tuple[float, ...] | None, reads: str
) -> None:
    options = {"density": density} | ({"then_density": then_density} if then_density else {})
    (job,) = planned(MergeSpec(method="dare", then="picky", options=options)).jobs
    assert job.reads == reads


def test_a_rank_is_that_of_the_method_that_truncates(planned: Callable[[MergeSpec], Plan]) -> None:
    options = {"rank": (Rank.parse(1),), "then_rank": (Rank.parse(2), Rank.parse(9))}
    notes = planned(MergeSpec(method="ranked", then="truncating", options=options)).notes
    assert "rank 9 is above the full rank of 1 matrices, clamped there" in notes
    options = {"rank": (Rank.parse(9),), "then_rank": (Rank.parse(2),)}
    notes = planned(MergeSpec(method="ranked", then="truncating", options=options)).notes
    assert not any("clamped" in note for note in notes)
