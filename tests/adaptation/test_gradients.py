"""The gradients that the loop hands to its optimiser are those of automatic differentiation of the formulas: E7, E8."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import pytest
import torch
from adaptation_cases import Assembled, State, assembled, clip_suite, text_suite
from naive import Answer, Form, Merged, is_kept
from paired import MASKS, WRAPPERS, Both, Case
from torch import Tensor

from taskmerge.adaptation.objectives import TaskObjective
from taskmerge.adaptation.state import Optimised
from taskmerge.methods.adaptive import OBJECTIVES
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.specs.suite import Suite

FILTERS = ("none", "code", "paper")
BATCH = 12
"""More than a shard, and no multiple of one."""
TOLERANCE = 1e-10


METHODS = (
    Case("adamerging", Form()),
    Case("adamerging_plus", Form(density=0.2)),
    Case("cart_plus", Form(origin="mean", rank=0.08)),
    Case("adarank", Form(rank=1.0, temperature=10)),
    Case("concrete", Form(relaxed=0.5)),
    Case("symerge", Form()),
    Case("tint", Form(), {"updates": "joint"}),
    Case("tint_plus", Form(), {"with_": "surgery", "on": "outputs"}),
)
VARIANTS = (
    Case("adamerging", Form(), {"layout": "task"}),
    Case("adamerging", Form(clamped=True), {"parity": True}),
    Case("adamerging", Form(clamped=True), {"parity": True, "layout": "task"}),
    Case("adamerging", Form(), {"project": True}),
    Case("adamerging_plus", Form(density=0.35, clamped=True), {"density": 0.35, "parity": True}),
    Case("cart_plus", Form(origin="mean", rank=0.4, qkv="split"), {"rank": 0.4, "qkv": "split"}),
    Case("adarank", Form(rank=1.0, temperature=10, origin="mean"), {"origin": "mean"}),
    Case("adarank", Form(rank=1.0, temperature=0.7, qkv="split"), {"temperature": 0.7, "qkv": "split"}),
    Case("adarank", Form(rank=1.0, temperature=10), train=("masks",)),
    Case("adarank", Form(rank=1.0, temperature=10), train=("coefficients",)),
    Case("adarank", Form(rank=1.0, temperature=10), {"with_": "tint"}),
    Case("concrete", Form(relaxed=0.5), train=("relaxed",)),
    Case("concrete", Form(relaxed=2.0, origin="mean"), {"temperature": 2.0, "origin": "mean", "seed": 4}),
    Case("concrete", Form(relaxed=0.05), {"temperature": 0.05, "with_": "tint", "updates": "joint"}),
    Case("adamerging_plus", Form(relaxed=0.5, density=0.2), {"with_": "concrete"}),
    Case("symerge", Form(), train=("heads",)),
    Case("symerge", Form(origin="mean"), {"origin": "mean"}),
    Case("symerge", Form(), {"layer": "1"}),
    Case("symerge", Form(clamped=True), {"layer": "first", "parity": True, "updates": "joint"}),
    Case("adamerging", Form(), model="bert"),
    Case("adarank", Form(rank=1.0, temperature=10), {"with_": "tint", "updates": "joint"}, model="bert"),
    Case("cart_plus", Form(origin="mean", rank=0.5, qkv="fused"), {"rank": 0.5, "qkv": "fused"}, model="bert"),
    Case("adarank", Form(rank=1.0, temperature=10, qkv="fused"), {"qkv": "fused"}, model="bert"),
    Case("concrete", Form(relaxed=0.5), {"qkv": "fused", "with_": "tint", "updates": "joint"}, model="bert"),
    Case("symerge", Form(), {"layer": "last", "updates": "joint"}, model="bert"),
    Case("adarank", Form(rank=1.0, temperature=10), model="gpt2"),
    Case(
        "adarank",
        Form(rank=1.0, temperature=10, qkv="split"),
        {"qkv": "split", "with_": "tint", "updates": "joint"},
        model="gpt2",
    ),
)
"""What changes the formula, or the model: a fused or split attention, GPT-2's transposed matrices."""


# --- runs at a point where nothing is zero, and their naive forms ------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """A run and its formula at a random point."""

    both: Both

    @cached_property
    def values(self) -> State:
        """What may be learnt, as leaves of the one graph that all tests of a case use."""
        return self.both.values()

    @cached_property
    def answers(self) -> dict[str, tuple[Answer, Answer]]:
        """The first update's."""
        return self.both.answers(self.values)

    def gradients(self, objective: str, filter_: str) -> dict[str, Tensor | None]:
        """Of the formula's loss, by automatic differentiation of the whole graph."""
        loss = self.both.loss(self.answers, objective, "outputs", filter_)
        assert loss is not None
        learnt = {name: value for name, value in self.values.items() if value.requires_grad}
        grads = torch.autograd.grad(loss, list(learnt.values()), allow_unused=True, retain_graph=True)
        return dict(zip(learnt, grads, strict=True))


class Handed:
    """An optimiser that keeps the gradients it is handed and moves nothing."""

    def __init__(self, inner: Optimised) -> None:
        self.inner, self.grads = inner, dict[str, Tensor | None]()
        self.values = inner.values

    def clear(self) -> None:
        self.inner.clear()

    def finite(self) -> bool:
        return self.inner.finite()

    def step(self) -> None:
        self.grads = {
            name: None if value.grad is None else value.grad.clone() for name, value in self.inner.values.items()
        }


def handed(found: Assembled, objective: str, filter_: str) -> dict[str, Tensor | None]:
    """The gradients of the first update under another objective."""
    run = found.run
    run.sides = tuple(replace(side, objective=TaskObjective(objective, "outputs", filter_)) for side in run.sides)  # type: ignore[arg-type]  # names are strings here
    optimiser = Handed(run.optimised)
    run.optimised = optimiser  # type: ignore[assignment]  # what the loop calls of it is there
    before = {name: value.detach().clone() for name, value in run.optimised.values.items()}
    try:
        record = next(run.updates())
    finally:
        run.optimised, run.update = optimiser.inner, 0
        with torch.no_grad():
            for name, value in run.optimised.values.items():
                value.copy_(before[name])  # projected coefficients were moved
    assert record.skipped is None
    return optimiser.grads


def move(found: Assembled) -> None:
    """Everything that may be learnt to a random point: coefficients inside and outside of [0, 1], bits on and off."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in found.run.optimised.values.items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if not value.requires_grad:
                continue  # what doesn't learn stays where it is: features of an encoder that is frozen are kept
            if name == "coefficients":
                value.copy_(0.5 + 0.5 * noise)
            elif name.startswith(MASKS):
                value.add_(noise, alpha=0.2)
            else:
                value.mul_(0.6).add_(noise, alpha=0.05)  # less sure than the experts: filters keep something


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Moved]:
    """A case's run and formula; each is put together once."""
    folder = tmp_path_factory.mktemp("gradients")

    @cache
    def suite(model: str) -> Suite:
        return clip_suite(folder / model) if model == "clip" else text_suite(folder / model, model)

    @cache
    def of(name: str) -> Moved:
        case = next(case for case in (*METHODS, *VARIANTS) if str(case) == name)
        keywords = {**case.options, "train": case.train, "batch_size": BATCH, "iterations": 1}
        found = assembled(
            suite(case.model), folder / "out", method=case.method, compute_dtype="float64", overwrite=True, **keywords
        )
        move(found)
        return Moved(Both(found, Merged.of(suite(case.model), case.form, WRAPPERS[case.model])))

    return lambda case: of(str(case))


@pytest.fixture
def moved(made: Callable[[Case], Moved], case: Case) -> Moved:
    """The run and the formula of a test's case."""
    return made(case)


def agree(moved: Moved, objective: str, filter_: str) -> None:
    """The loop's gradients against those of the formula, relative to the largest of each tensor."""
    wanted, got = moved.gradients(objective, filter_), handed(moved.both.found, objective, filter_)
    assert any(grad is not None and bool(grad.any()) for grad in wanted.values())
    for name, found in got.items():
        expected = wanted.get(name)
        if expected is None or found is None:
            assert expected is None or not expected.any(), name
            assert found is None or not found.any(), name
            continue
        scale = float(expected.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * scale, msg=lambda m, n=name: f"{n}: {m}")


# --- laws ------------------------------------------------------------------------------------------------------


def test_every_method_that_shapes_weights_is_here() -> None:
    shaping = {name for name, method in adaptive_methods().items() if method.bound({}).shapes_weights}
    assert shaping == {case.method for case in METHODS}


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("case", METHODS, ids=str)
def test_gradients_are_those_of_the_formula(moved: Moved, objective: str, filter_: str) -> None:
    agree(moved, objective, filter_)


@pytest.mark.parametrize(("objective", "filter_"), [("entropy", "none"), ("self", "code"), ("js", "paper")])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_gradients_of_other_formulas_and_models(moved: Moved, objective: str, filter_: str) -> None:
    agree(moved, objective, filter_)


@pytest.mark.parametrize("case", METHODS, ids=str)
def test_filters_keep_some_items_here_and_drop_some(moved: Moved) -> None:
    for filter_ in ("code", "paper"):
        kept = [
            is_kept(filter_, ours, theirs)
            for merged, expert in moved.answers.values()
            for ours, theirs in zip(merged.outputs.detach(), expert.outputs, strict=True)
        ]
        assert 0 < sum(kept) < len(kept)
