"""Laws that every registered method obeys, whatever its formula; new methods are covered as they are registered."""

import inspect
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.methods.contract import HANDED_IN, Method, Setting, accepted, bind
from taskmerge.methods.registry import find, methods
from taskmerge.numerics.rank import Rank
from taskmerge.numerics.selection import Scan, part_of
from taskmerge.numerics.spectral import TaskMatrices
from taskmerge.seeds import uniform_at

R = TypeVar("R")
LAW = settings(max_examples=25, deadline=None)
SHAPES = [(), (1,), (5,), (0,), (1, 1), (1, 4), (4, 1), (6, 5), (5, 6), (2, 0), (2, 3, 2, 2)]

EVERY = list(methods().values())
MERGING = [one for one in EVERY if one.gives == "merged"]
TRANSFORMS = [one for one in EVERY if one.gives == "task_vectors"]
SYMMETRIC = [one for one in EVERY if one.symmetric]
ON_MATRICES = [one for one in EVERY if one.granularity(one.defaults()) == "matrix"]
BY_ELEMENT = [one for one in EVERY if one.granularity(one.defaults()) == "elements"]


def names(found: list[Method]) -> Any:
    """One test a method, named after it."""
    return pytest.mark.parametrize("method", found, ids=lambda one: one.name)


@dataclass(frozen=True)
class Result:
    """What one method makes of one tensor, in its own space, and as merged weights."""

    own: Tensor
    merged: Tensor


def scan_of(stack: Tensor) -> Scan:
    """A model of this one tensor, in slices of 25 elements."""
    flat = stack.reshape(len(stack), math.prod(stack.shape[1:]))
    return lambda f, share=1: (f(part_of(piece, share)) for piece in flat.split(25, dim=1) if piece.numel())


def in_space(method: Method, experts: Tensor, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(origin, rows) as the contract defines them for the method's space."""
    if method.space == "weight":
        return torch.zeros_like(base), experts.clone()
    if method.space == "delta":
        return base, experts - base
    total = torch.zeros_like(base)
    for expert, weight in zip(experts, weights.tolist(), strict=True):
        total += expert * (weight / float(weights.sum()))
    return total, experts - total


def handed(method: Method, stack: Tensor, weights: Tensor, tasks: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that a kernel may name besides its stack."""

    def uniform() -> Tensor:
        rows = [uniform_at(0, task, "w", 0, math.prod(stack.shape[1:])).view(stack.shape[1:]) for task in tasks]
        return torch.stack(rows)

    statistic = method.statistic
    known = {**options, "weights": weights}
    found = statistic(scan_of(stack), **accepted(statistic, known)) if statistic else None
    return {**options, "weights": weights, "statistic": found, "uniform": uniform, "position": (1, 3)}


def run(
    method: Method,
    experts: Tensor,
    base: Tensor | None = None,
    weights: Tensor | None = None,
    tasks: list[str] | None = None,
    **given_options: Any,
) -> Result:
    """The method on one tensor, through the contract alone."""
    base = torch.zeros_like(experts[0]) if base is None else base
    weights = torch.ones(len(experts), dtype=torch.float64) if weights is None else weights
    tasks = [f"task{index}" for index in range(len(experts))] if tasks is None else tasks
    options = bind(method, given_options)
    origin, stack = in_space(method, experts, base, weights)
    before = stack.clone()
    known = handed(method, stack, weights, tasks, options)
    kernel: Callable[..., Tensor] | None = method.kernel
    if method.granularity(options) != "matrix":
        own = method.kernel(stack, **accepted(method.kernel, known))
    elif stack.dim() == 3 and stack.numel():
        own = method.kernel(TaskMatrices(stack), **accepted(method.kernel, known))
    else:
        kernel = method.elsewhere
        own = torch.zeros_like(base) if kernel is None else kernel(stack, **accepted(kernel, known))
    assert torch.equal(stack, before), "a kernel wrote into its stack"
    if method.gives == "task_vectors":
        finish = find("task_arithmetic").kernel
        return Result(own, origin + finish(own, weights))
    return Result(own, origin + own)


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tasks_for(method: Method, wanted: int = 3) -> int:
    """The wanted number of experts, within what the method takes."""
    least, most = method.tasks
    return max(least, min(wanted, most or wanted))


def close(found: Tensor, expected: Tensor, tolerance: float, size: float | None = None) -> None:
    assert found.shape == expected.shape
    size = float(expected.abs().max()) if size is None and expected.numel() else size or 1.0
    worst = float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0
    assert worst <= tolerance * max(size, 1e-30), (worst, size)


@names(EVERY)
def test_declaration_can_be_read(method: Method) -> None:
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\d{4,}/\S+", method.paper)
    assert method.summary.endswith(".")
    assert "\n" not in method.formula
    assert method.formula.startswith(("θ = ", "τ̃_t = "))
    assert method.title[0].isupper()
    assert all(note and "\n" not in note and not note.endswith(".") for note in method.notes)
    first, *others = inspect.signature(method.kernel).parameters
    assert first == ("matrices" if method in ON_MATRICES else "stack")
    assert set(others) == {*method.settings, *(HANDED_IN & set(others))}


@names(EVERY)
def test_defaults_lie_in_their_own_ranges(method: Method) -> None:
    for setting in method.settings.values():
        assert setting.check(setting.default) == setting.default
        assert setting.understood(setting.default) != "none"
        assert setting.option.help


@names(EVERY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shape_and_dtype_are_kept(method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tasks = tasks_for(method)
    result = run(method, normal((tasks, *shape), 0, dtype), normal(shape, 1, dtype))
    assert result.own.shape == ((tasks, *shape) if method.gives == "task_vectors" else shape)
    assert result.own.dtype == result.merged.dtype == dtype
    assert torch.isfinite(result.merged).all()


@st.composite
def awkward(draw: st.DrawFn) -> tuple[int, tuple[int, ...], float, int, str]:
    """How many tasks, a shape, a size, a seed, and a way in which the experts are degenerate."""
    kinds = ["normal", "zeros", "equal", "opposed", "quarters", "one entry", "rank one"]
    sizes = [1e-30, 1e-8, 1.0, 1e8]
    return (
        draw(st.integers(1, 5)),
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(sizes)),
        draw(st.integers(0, 9)),
        draw(st.sampled_from(kinds)),
    )


def degenerate(tasks: int, shape: tuple[int, ...], size: float, seed: int, kind: str) -> Tensor:
    stack = normal((tasks, *shape), seed)
    if kind == "zeros":
        stack.zero_()
    elif kind == "equal":
        stack[1:] = stack[0]
    elif kind == "opposed":
        stack[1::2] = -stack[0]
    elif kind == "quarters":
        stack = (stack * 4).round() / 4
    elif kind == "one entry":
        stack.view(-1)[1:] = 0
    elif kind == "rank one" and len(shape) == 2:
        stack = stack[:, :, :1] * stack[:, :1, :]
    return stack * size


@names(EVERY)
@LAW
@given(awkward())
def test_finite_experts_give_a_finite_result(
    method: Method, case: tuple[int, tuple[int, ...], float, int, str]
) -> None:
    tasks, *rest = case
    assert torch.isfinite(run(method, degenerate(tasks_for(method, tasks), *rest)).merged).all()


def extremes(setting: Setting) -> list[Any]:
    """Both ends of an option's range, or all its choices."""
    if isinstance(setting.type, tuple):
        return list(setting.type)
    if setting.type is Rank:
        return ["1", "1.0", "0.001", "energy:0.5", "energy:1.0", "999"]
    return [end for end in (setting.option.low, setting.option.high) if end is not None]


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        pytest.param(one, name, value, id=f"{one.name}-{name}-{value}")
        for one in EVERY
        for name, setting in one.settings.items()
        for value in extremes(setting)
    ],
)
def test_the_ends_of_every_options_range_work(method: Method, name: str, value: Any) -> None:
    for shape in [(), (3,), (6, 5), (1, 4), (2, 3, 2, 2)]:
        assert torch.isfinite(run(method, normal((tasks_for(method), *shape), 3), **{name: value}).merged).all()


@names(EVERY)
@pytest.mark.parametrize("shape", [(40,), (12, 9), (9, 12), (3, 4, 2, 2)], ids=str)
def test_float32_is_near_float64(method: Method, shape: tuple[int, ...]) -> None:
    experts = normal((tasks_for(method, 4), *shape), 5)
    base = normal(shape, 6)
    exact = run(method, experts.double(), base.double()).merged
    close(run(method, experts, base).merged, exact, 2e-5)


@names(SYMMETRIC)
@LAW
@given(st.integers(0, 50), st.permutations(range(4)), st.sampled_from([(), (5,), (6, 5), (5, 7), (2, 3, 2, 2)]))
def test_order_of_tasks_is_irrelevant(method: Method, seed: int, order: list[int], shape: tuple[int, ...]) -> None:
    experts, tasks = normal((4, *shape), seed, torch.float64), ["a", "b", "c", "d"]
    weights = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
    result = run(method, experts, weights=weights, tasks=tasks)
    moved = run(method, experts[order], weights=weights[order], tasks=[tasks[index] for index in order])
    expected = result.own[order] if method.gives == "task_vectors" else result.own
    close(moved.own, expected, 1e-9, size=float(experts.abs().max()))


@names(BY_ELEMENT)
@LAW
@given(st.integers(0, 50), st.lists(st.integers(0, 60), max_size=5), st.sampled_from([torch.float32, torch.float64]))
def test_chunks_and_shapes_change_no_bit(method: Method, seed: int, cuts: list[int], dtype: torch.dtype) -> None:
    stack = normal((tasks_for(method), 60), seed, dtype)
    known = handed(method, stack, torch.ones(len(stack), dtype=torch.float64), ["a", "b", "c"], method.defaults())
    whole = method.kernel(stack, **accepted(method.kernel, known))
    bounds = [0, *sorted(cuts), 60]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        piece = {**known, "uniform": lambda a=start, b=stop: known["uniform"]()[:, a:b]}
        parts.append(method.kernel(stack[:, start:stop], **accepted(method.kernel, piece)))
    assert torch.equal(torch.cat(parts, dim=-1), whole)
    shaped = {**known, "uniform": lambda: known["uniform"]().view(len(stack), 3, 4, 5)}
    folded = method.kernel(stack.view(len(stack), 3, 4, 5), **accepted(method.kernel, shaped))
    assert torch.equal(folded.reshape(whole.shape), whole)


@names(TRANSFORMS)
@LAW
@given(st.integers(0, 50), st.sampled_from([(), (5,), (6, 5), (2, 3, 2, 2)]))
def test_transforms_treat_every_task_by_itself(method: Method, seed: int, shape: tuple[int, ...]) -> None:
    stack, tasks = normal((3, *shape), seed), ["a", "b", "c"]
    together = run(method, stack, tasks=tasks).own
    for index in range(3):
        alone = run(method, stack[index : index + 1], tasks=tasks[index : index + 1]).own
        assert torch.equal(alone[0], together[index])


NOT_HOMOGENEOUS = {"pcb"}  # tanh(τ_t Σ τ) weighs magnitudes against 1


@names([one for one in EVERY if one.name not in NOT_HOMOGENEOUS])
@LAW
@given(st.integers(0, 50), st.sampled_from([0.25, 4.0]), st.sampled_from([(), (5,), (6, 5), (2, 3, 2, 2)]))
def test_scaling_the_task_vectors_scales_the_result(
    method: Method, seed: int, scale: float, shape: tuple[int, ...]
) -> None:
    experts = normal((tasks_for(method), *shape), seed, torch.float64)
    result = run(method, experts).own
    close(run(method, experts * scale).own, scale * result, 1e-9, size=float(experts.abs().max()))


@names([one for one in EVERY if not one.needs_base])
def test_methods_without_a_base_commute_with_shifts(method: Method) -> None:
    """What needs no base must not depend on where zero is (up to slerp, which measures angles from it)."""
    if method.name == "slerp":
        return
    experts, shift = normal((3, 6, 5), 0, torch.float64), normal((6, 5), 1, torch.float64)
    close(run(method, experts + shift).merged, run(method, experts).merged + shift, 1e-9)


ONE_EXPERT_BACK = {
    "average": {},
    "cart": {},
    "slerp": {},
    "star": {"eta": 1.0},
    "model_stock": {},
    "ties": {"density": 1.0},
    "magmax": {"coefficient": 1.0},
    "task_arithmetic": {"coefficient": 1 / 3},
    "lines": {"beta": 0.0},
}


@pytest.mark.parametrize("name", sorted(ONE_EXPERT_BACK))
@LAW
@given(seed=st.integers(0, 50), shape=st.sampled_from([(), (5,), (6, 5), (1, 7), (2, 3, 2, 2)]))
def test_equal_experts_give_that_expert(name: str, seed: int, shape: tuple[int, ...]) -> None:
    method = find(name)
    one, base = normal(shape, seed), normal(shape, seed + 100)
    experts = torch.stack([one] * tasks_for(method))
    size = float(torch.stack([one, base]).abs().max())  # the base goes off and on again, and rounds
    close(run(method, experts, base, **ONE_EXPERT_BACK[name]).merged, one, 2e-6, size)


UNMOVED_BY_ZEROS = {
    "task_arithmetic": {"coefficient": 0.3},
    "truncated_task_arithmetic": {"coefficient": 0.3, "rank": "0.5"},
    "iso_c": {},
    "ties": {"aggregate": "sum"},
    "lines": {"alpha": 0.3},
    "magmax": {},
    "consensus_ta": {},
    "consensus_ties": {},
    "dare": {},
    "breadcrumbs": {},
}


@pytest.mark.parametrize("name", sorted(UNMOVED_BY_ZEROS))
@LAW
@given(seed=st.integers(0, 50))
def test_a_zero_task_vector_changes_nothing(name: str, seed: int) -> None:
    method, options = find(name), UNMOVED_BY_ZEROS[name]
    experts, base = normal((3, 6, 5), seed, torch.float64), normal((6, 5), seed + 100, torch.float64)
    with_base = torch.cat([experts, base[None]])
    close(run(method, with_base, base, **options).merged, run(method, experts, base, **options).merged, 1e-9)


@LAW
@given(st.integers(1, 5), st.integers(0, 50), st.floats(-3, 3), st.sampled_from([(), (5,), (6, 5)]))
def test_e1_averaging_is_task_arithmetic_and_untruncated_cart(
    tasks: int, seed: int, coefficient: float, shape: tuple[int, ...]
) -> None:
    experts, base = normal((tasks, *shape), seed, torch.float64), normal(shape, seed + 100, torch.float64)
    average = run(find("average"), experts).merged
    close(run(find("task_arithmetic"), experts, base, coefficient=1 / tasks).merged, average, 1e-9)
    close(run(find("cart"), experts, rank="1.0", coefficient=coefficient).merged, average, 1e-8)


@LAW
@given(st.integers(0, 50), st.floats(-3, 3), st.sampled_from(["1", "0.5", "energy:0.9", "1.0"]))
def test_e3_cart_of_two_is_the_average_and_of_one_the_expert(seed: int, coefficient: float, rank: str) -> None:
    experts, options = normal((2, 6, 5), seed, torch.float64), {"rank": rank, "coefficient": coefficient}
    close(run(find("cart"), experts, **options).merged, run(find("average"), experts).merged, 1e-8)
    close(run(find("cart"), experts[:1], **options).merged, experts[0], 1e-12)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    weighted = run(find("average"), experts, weights=weights).merged
    close(run(find("cart"), experts, weights=weights, **options).merged, weighted, 1e-8)


def test_e4_average_and_cart_read_no_base() -> None:
    assert [one.name for one in EVERY if one.space != "delta"] == ["average", "cart", "slerp"]


@names(ON_MATRICES)
@LAW
@given(st.integers(0, 50), st.sampled_from([(6, 5), (5, 6), (4, 4), (1, 5)]))
def test_transposing_the_matrices_transposes_the_result(method: Method, seed: int, shape: tuple[int, int]) -> None:
    if method.name == "iso_cts":
        return  # projects on the left only, as its authors do
    experts = normal((3, *shape), seed, torch.float64)
    close(run(method, experts.mT.contiguous()).merged, run(method, experts).merged.mT, 1e-7)


@names([one for one in MERGING if one.weighted])
def test_a_weight_of_zero_is_a_zero_task_vector_or_an_absent_expert(method: Method) -> None:
    experts, base = normal((3, 6, 5), 2, torch.float64), normal((6, 5), 3, torch.float64)
    weights = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    found = run(method, experts, base, weights=weights).merged
    other = experts.clone()
    other[2] += 1.0
    if method.name == "pcb":
        return  # weights act after the competition, in which every expert takes part
    close(run(method, other, base, weights=weights).merged, found, 1e-9)
