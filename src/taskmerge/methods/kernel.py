"""A method's kernel, argument by argument: what it is handed, what it may not do, what it gives back."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypedDict

from torch import Tensor

from taskmerge.methods.composed import LearnedTensor
from taskmerge.numerics.selection import Scan
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.types import Stack, Weights

Position = tuple[int, int]
"""Index of a block, from 0, and number of blocks."""

Uniform = Callable[[], Tensor]
"""A fresh float32 tensor like the stack, uniform in [0, 1), that the kernel may overwrite.

A function of seed, task, tensor name and element only: threads, slices and order change nothing.
"""


class HandedIn(TypedDict, total=False):
    """What a kernel is handed by name, besides its options: each only where the kernel has a parameter of that name."""

    weights: Weights
    """[task] float64 on the CPU: one a task, ones where the user gave none. Without it `--weight` is refused."""

    statistic: Any
    """What the method's `statistic=` made of the whole model; None where a tensor comes without a model."""

    shared: Any
    """What the method's `shared=` made of these matrices; None where they come without it. Never written into."""

    uniform: Uniform
    """The only source of randomness; a method with it takes `--seed`."""

    position: Position | None
    """The block that the tensor lies in; None outside blocks."""

    learned: LearnedTensor
    """What adaptation has learnt of this tensor; its masks are those of this matrix alone, [1, T, k], or of these
    entries alone, [1, 1, count]."""


HANDED_IN = frozenset(HandedIn.__annotations__)


class StackKernel(Protocol):
    """The arithmetic of a method with `reads="elements"` or `reads="tensor"`; any plain function of this form.

    - `stack` [task, *shape], float32 or float64: one row a task, in the method's space (`contract.py`), in the
      order of the tasks' names. Under `elements` a slice of a tensor, in any size and shape, for the result of an
      element must depend on that element alone; under `tensor` the whole tensor. Never written into.
    - other parameters, by name: those of `HandedIn`, and the method's options.

    Gives [*shape], or [task, *shape] under `gives="task_vectors"`, in the dtype of `stack` and on its device.
    Anything else is refused. It casts nothing, opens no file, prints nothing and keeps no state.
    """

    def __call__(self, stack: Stack, /, *args: Any, **kwargs: Any) -> Tensor: ...


class MatrixKernel(Protocol):
    """The arithmetic of a method with `reads="matrix"`; other parameters and duties as for `StackKernel`.

    - `matrices`, the T matrices [m, n] of one tensor: `.stack` [task, m, n], truncations that are factored once for
      all ranks (`truncated_sum`, `top`, `singular_values`), `.full` = the rank that a ratio counts from.

    Gives [m, n]. Tensors that are no matrices go to the method's `elsewhere`, or stay at the origin.
    """

    def __call__(self, matrices: TaskMatrices, /, *args: Any, **kwargs: Any) -> Tensor: ...


Kernel = StackKernel | MatrixKernel


class Statistic(Protocol):
    """A first pass over the whole model, for a method that needs to know it before it merges the first tensor.

    - `scan`: calls a function on slices [task, count] of all float tensors, in canonical order, in several threads;
      again for another pass.
    - other parameters, by name: options of the method, and `weights`. Grid points that agree in them share the pass.

    Gives a frozen value that the kernel gets as `statistic`; its `notes`, if it has any, are told to the user.
    """

    def __call__(self, scan: Scan, /, *args: Any, **kwargs: Any) -> object: ...


class Shared(Protocol):
    """What is costly in a kernel on matrices, once for all points of a grid that agree in the options it names.

    - `matrices`: those that the kernel gets next.
    - other parameters, by name: options of the method, nothing else.

    Gives a value that the kernel gets as `shared`. If it has `notes`, they are counted over matrices and shown after
    the merge.
    """

    def __call__(self, matrices: TaskMatrices, /, *args: Any, **kwargs: Any) -> object: ...


class Factor(Protocol):
    """What a method is to other methods under `--lines`: a number that their merged task vector is multiplied by.

    - `position` of the tensor, and the number of `tasks`.
    - other parameters, by name: options of the method.
    """

    def __call__(self, position: Position | None, tasks: int, /, *args: Any, **kwargs: Any) -> float: ...


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in _parameters(function)


def first_parameter(function: Callable[..., Any]) -> str:
    """The name of a function's first parameter; "" where it has none."""
    return next(iter(_parameters(function)), "")


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that a function has parameters for."""
    parameters = _parameters(function)
    return {name: value for name, value in values.items() if name in parameters}


@lru_cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters: asked for once a tensor, and slow to find out."""
    return tuple(inspect.signature(function).parameters)
