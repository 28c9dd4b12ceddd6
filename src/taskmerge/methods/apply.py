"""A method on one tensor, through its declaration alone: what tests and oracles compare with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from taskmerge.methods.checks import check_result
from taskmerge.methods.contract import Method, declaration
from taskmerge.methods.kernel import Kernel, accepted
from taskmerge.methods.options import bind
from taskmerge.methods.task_arithmetic import task_arithmetic
from taskmerge.numerics.centre import centre_
from taskmerge.numerics.selection import Scan, part_of
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.seeds import uniform_at
from taskmerge.types import Weights

R = TypeVar("R")
SMALL = 25  # elements


@dataclass(frozen=True, slots=True)
class Applied:
    """What a method makes of one tensor: the kernel's own result, and the merged weights."""

    own: Tensor
    merged: Tensor


def apply(
    method: Kernel | Method,
    experts: Tensor,
    base: Tensor | None = None,
    *,
    weights: Weights | None = None,
    tasks: Sequence[str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Applied:
    """A method on the experts [task, *shape] of one tensor, as the engine would merge a model of that one tensor.

    Where nothing is given the base is zero, weights are ones, tasks have some names and options their defaults.
    `AssertionError` if the kernel writes into its stack, `UsageError` if its result has another form than it should.
    """
    declared = method if isinstance(method, Method) else declaration(method)
    base = torch.zeros_like(experts[0]) if base is None else base
    weights = torch.ones(len(experts), dtype=torch.float64) if weights is None else weights
    origin, stack = _in_space(declared, experts, base, weights)
    before = stack.clone()
    own = kernel_on(declared, stack, handed(declared, stack, weights, tasks or task_names(len(experts)), options))
    if not torch.equal(stack, before):
        raise AssertionError(f"the kernel of `{declared.name}` writes into its stack")
    return Applied(own, origin + (task_arithmetic(own, weights) if declared.gives == "task_vectors" else own))


def task_names(count: int) -> list[str]:
    """Some names of tasks."""
    return [f"task{index}" for index in range(count)]


def _in_space(method: Method, experts: Tensor, base: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """(origin, rows) as the contract defines them for the method's space."""
    if method.space == "weight":
        return torch.zeros_like(base), experts.clone()
    if method.space == "delta":
        return base, experts - base
    rows = experts.clone()
    return centre_(rows, weights), rows


def handed(
    method: Method, stack: Tensor, weights: Weights, tasks: Sequence[str], options: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Everything that a kernel may name besides its stack, for seed 0 and a tensor in block 1 of 3."""
    shape = stack.shape[1:]

    def uniform() -> Tensor:
        return torch.stack([uniform_at(0, task, "weight", 0, math.prod(shape)).view(shape) for task in tasks])

    values: dict[str, Any] = {**bind(method, options or {}), "weights": weights}
    first_pass = method.statistic
    statistic = first_pass(_scan(stack), **accepted(first_pass, values)) if first_pass else None
    return {**values, "statistic": statistic, "shared": None, "uniform": uniform, "position": (1, 3)}


def _scan(stack: Tensor) -> Scan:
    """A model of this one tensor, in slices so small that there are several."""
    flat = stack.reshape(len(stack), math.prod(stack.shape[1:]))

    def scan(f: Callable[[Tensor], R], share: int = 1) -> Iterator[R]:
        return (f(part_of(flat[:, start : start + SMALL], share)) for start in range(0, flat.shape[1], SMALL))

    return scan


def kernel_on(method: Method, stack: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The kernel on the stack, or on its matrices; its `elsewhere`, or zeros, on what is no matrix."""
    kernel: Kernel | None = method.kernel
    data: Any = stack
    if method.on_matrices:
        reads = method.granularity({name: given[name] for name in method.settings})
        matrices = reads == "matrix" and stack.dim() == 3 and stack.numel() > 0
        kernel, data = (kernel, TaskMatrices(stack)) if matrices else (method.elsewhere, stack)
    if kernel is None:
        return torch.zeros_like(stack[0])
    like = stack if method.gives == "task_vectors" else stack[0]
    return check_result(method, kernel(data, **accepted(kernel, given)), like)
