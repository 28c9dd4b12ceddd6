"""`check_laws` catches what it is for: each of these methods is right but for one thing, and the law names it."""

from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

from taskmerge.errors import UsageError
from taskmerge.methods.apply import apply
from taskmerge.methods.contract import Laws, declaration, method
from taskmerge.methods.kernel import Uniform
from taskmerge.methods.options import Option
from taskmerge.methods.registry import methods
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.testing import LAWS, check_laws, laws_of
from taskmerge.types import Stack, Weights

WORDS: dict[str, Any] = {"title": "A method", "formula": "θ = …", "paper": "none"}
WEIGHT: dict[str, Any] = {"space": "weight", "reads": "elements", **WORDS}
DELTA: dict[str, Any] = {"space": "delta", "reads": "elements", **WORDS}


@method(**{**WEIGHT, "laws": Laws(equal_experts={})})
def right(stack: Stack, weights: Weights) -> Tensor:
    """The weighted mean."""
    return (stack * (weights / weights.sum()).to(stack)[(...,) + (None,) * (stack.dim() - 1)]).sum(0)


@method(**WEIGHT)
def unread(stack: Stack) -> Tensor:
    """No full stop"""
    return stack.mean(0)


@method(**WEIGHT)
def at_least_1d(stack: Stack) -> Tensor:
    """One entry for a scalar."""
    return stack.mean(0) if stack.dim() > 1 else stack.mean(0, keepdim=True)


@method(**WEIGHT)
def dividing(stack: Stack) -> Tensor:
    """0/0 where all are zero."""
    return stack.mean(0) * (stack.abs().sum(0) / stack.abs().sum(0))


@method(**WEIGHT)
def endless(stack: Stack, *, power: Annotated[float, Option("of nothing", low=0, high=1)] = 1.0) -> Tensor:
    """Divides by an option that may be zero."""
    return stack.mean(0) / power


@method(**WEIGHT)
def mistaken(
    stack: Stack,
    *,
    power: Annotated[float | None, Option("of nothing", auto="1/T", usual=lambda options, tasks: 1 / 3)] = None,
) -> Tensor:
    """Says a number that runs on three tasks alone."""
    return stack.sum(0) * (1 / len(stack) if power is None else power)


@method(**WEIGHT)
def rough(stack: Stack) -> Tensor:
    """In half precision."""
    return stack.mean(0) if stack.dtype == torch.float64 else stack.mean(0).bfloat16().float()


@method(**WEIGHT)
def noisy(stack: Stack) -> Tensor:
    """Draws from the global generator."""
    return stack.mean(0) * (1 + 1e-3 * torch.rand(()).to(stack))


@method(**WEIGHT)
def first_of_all(stack: Stack) -> Tensor:
    """The first expert."""
    return stack[0].clone()


@method(**DELTA)
def by_slice(stack: Stack) -> Tensor:
    """Divided by the largest entry of whatever it sees."""
    return stack.mean(0) * stack.abs().amax() if stack.numel() else stack.mean(0)


@method(**DELTA, gives="task_vectors")
def mixing(stack: Stack) -> Tensor:
    """Every task without the others' mean."""
    return stack - stack.mean(0)


@method(**DELTA)
def squared(stack: Stack) -> Tensor:
    """Squares."""
    return stack.square().sum(0)


@method(**WEIGHT)
def from_zero(stack: Stack) -> Tensor:
    """Not shifted with the experts."""
    return stack.sum(0)


@method(**WEIGHT, laws=Laws(shifts=False, equal_experts={}))
def larger(stack: Stack) -> Tensor:
    """A little too large."""
    return stack.mean(0) * 1.001


@method(**DELTA, laws=Laws(zero_task={}))
def averaged(stack: Stack) -> Tensor:
    """Counts tasks that did nothing."""
    return stack.mean(0)


@method(space="delta", reads="matrix", **WORDS)
def lower(matrices: TaskMatrices) -> Tensor:
    """The lower triangles."""
    return matrices.stack.sum(0).tril()


@method(**WEIGHT)
def weightless(stack: Stack, weights: Weights) -> Tensor:
    """Takes weights and forgets them."""
    return stack.mean(0)


BREAKERS = {
    unread: "can_be_read", at_least_1d: "keeps_shape_and_dtype", dividing: "stays_finite",
    endless: "works_at_the_ends_of_ranges", rough: "is_near_itself_in_float64", noisy: "gives_the_same_twice",
    first_of_all: "is_symmetric", by_slice: "works_element_by_element", mixing: "treats_every_task_by_itself",
    squared: "is_homogeneous", from_zero: "commutes_with_shifts", larger: "gives_equal_experts_back",
    averaged: "ignores_an_unmoved_expert", lower: "commutes_with_transposition",
    weightless: "ignores_an_expert_of_weight_zero", mistaken: "says_what_runs",
}  # fmt: skip


def test_a_method_without_faults_passes() -> None:
    check_laws(right)


@pytest.mark.parametrize("kernel", BREAKERS, ids=lambda kernel: kernel.__name__)
def test_a_broken_law_is_named(kernel: Any) -> None:
    with pytest.raises((AssertionError, UsageError)) as caught:
        check_laws(kernel)
    notes = " ".join(caught.value.__notes__)
    assert f"`{kernel.__name__}` breaks the law `{BREAKERS[kernel]}`: " in notes


def test_every_law_is_broken_by_something_here_and_kept_by_some_method() -> None:
    assert set(BREAKERS.values()) == {law.__name__ for law in LAWS}
    assert {law for declared in methods().values() for law in laws_of(declared)} == set(LAWS)


def test_a_kernel_that_writes_into_its_stack_is_caught() -> None:
    @method(**WEIGHT)
    def writing(stack: Stack) -> Tensor:
        """In place."""
        return stack[0].mul_(0.5)

    with pytest.raises(AssertionError, match="the kernel of `writing` writes into its stack"):
        apply(writing, torch.ones(2, 3))


def test_apply_adds_what_the_space_says() -> None:
    def doubled(stack: Stack) -> Tensor:
        """Twice the sum."""
        return 2 * stack.sum(0)

    experts, base = torch.tensor([[1.0], [4.0]]), torch.tensor([2.0])
    spaces = {"weight": (10.0, 10.0), "delta": (2.0, 4.0), "centred": (0.0, 2.5)}
    for space, wanted in spaces.items():
        method(**{**WEIGHT, "space": space})(doubled)
        applied = apply(declaration(doubled), experts, base)
        assert (float(applied.own), float(applied.merged)) == wanted
    method(**{**WEIGHT, "space": "centred"})(doubled)
    weighted = apply(doubled, experts, weights=torch.tensor([3.0, 1.0]).double())
    assert float(weighted.merged) == 1.75 + 2 * (-0.75 + 2.25)


def test_apply_hands_in_what_a_kernel_names() -> None:
    @method(**WEIGHT)
    def drawing(
        stack: Stack, uniform: Uniform, *, share: Annotated[float, Option("kept", low=0, high=1)] = 0.5
    ) -> Tensor:
        """Some entries of the sum."""
        return (stack * (uniform() < share)).sum(0)

    ones = torch.ones(2, 50)
    assert torch.equal(apply(drawing, ones, options={"share": 1}).own, ones.sum(0))
    assert 0 < int(apply(drawing, ones).own.sum()) < 100
    assert torch.equal(apply(drawing, ones).own, apply(drawing, ones).own)
    assert not torch.equal(apply(drawing, ones).own, apply(drawing, ones, tasks=["a", "b"]).own)
