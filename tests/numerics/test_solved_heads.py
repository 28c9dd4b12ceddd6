"""Solved heads against their definition: zero gradient, no better neighbour, normal equations, scikit-learn."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import conv2d

from taskmerge.errors import BadNumber, Mismatch, UsageError
from taskmerge.numerics.solved_heads import ROWS, Solved, fit_logits, fit_values, hard_targets, soft_targets

PROPERTY = settings(max_examples=25, deadline=None)
Fit = Callable[..., Solved]
both = pytest.mark.parametrize("fit", [fit_logits, fit_values], ids=["logits", "values"])


class Case(NamedTuple):
    features: Tensor
    targets: Tensor
    weight: Tensor
    bias: Tensor | None


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(
    items: int = 60, width: int = 8, classes: int = 5, *, seed: int = 0, bias: bool = True, scale: float = 3.0
) -> Case:
    """Features in which some directions are ten times as large as others, and targets from other features."""
    spread = torch.logspace(0, -1, width, dtype=torch.float64)
    features, others = (normal(items, width, seed=seed + shift) * spread for shift in (0, 1))
    weight = scale * normal(classes, width, seed=seed + 2)
    targets = soft_targets((0.5 * features + others) @ (weight + normal(classes, width, seed=seed + 3)).T)
    return Case(features, targets, weight, normal(classes, seed=seed + 4) if bias else None)


def objective(fit: Fit, given: Case, weight: Tensor, bias: Tensor | None, pull: float) -> Tensor:
    """The definition, written with torch's own losses over items and places."""
    outputs = torch.einsum("nd...,cd->nc...", given.features, weight.flatten(1))
    if bias is not None:
        outputs = outputs + bias.view(-1, *[1] * (outputs.dim() - 2))
    moved = (weight - given.weight).square().sum()
    if bias is not None and given.bias is not None:
        moved = moved + (bias - given.bias).square().sum()
    if fit is fit_logits:
        loss = -(given.targets * outputs.log_softmax(1)).sum(1).mean()
    else:
        loss = (outputs - given.targets).square().mean()
    return loss + pull / len(weight) * moved


def gradient_norm(fit: Fit, given: Case, solved: Solved, pull: float) -> float:
    weight = solved.weight.clone().requires_grad_()
    bias = None if solved.bias is None else solved.bias.clone().requires_grad_()
    leaves = [weight] if bias is None else [weight, bias]
    parts = torch.autograd.grad(objective(fit, given, weight, bias, pull), leaves)
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


def probabilities(solved: Solved, features: Tensor) -> Tensor:
    outputs = features.double() @ solved.weight.double().T
    return (outputs if solved.bias is None else outputs + solved.bias.double()).softmax(1)


@both
@PROPERTY
@given(
    items=st.integers(1, 40),
    width=st.integers(1, 12),
    classes=st.integers(1, 6),
    bias=st.booleans(),
    pull=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 999),
)
def test_no_head_nearby_is_better_and_the_gradient_is_zero(
    fit: Fit, items: int, width: int, classes: int, bias: bool, pull: float, scale: float, seed: int
) -> None:
    given = case(items, width, classes, seed=seed, bias=bias, scale=scale)
    solved = fit(*given, pull=pull)
    best = float(objective(fit, given, solved.weight, solved.bias, pull))
    assert solved.loss == pytest.approx(best, rel=1e-10, abs=1e-12)
    assert solved.start_loss == pytest.approx(float(objective(fit, given, given.weight, given.bias, pull)), rel=1e-10)
    assert solved.loss <= solved.start_loss
    assert solved.gradient <= 1e-6
    length = float(torch.cat([given.features, torch.ones(items, int(bias)).double()], 1).square().sum(1).mean().sqrt())
    assert gradient_norm(fit, given, solved, pull) <= 1.01e-6 * length * max(1, math.sqrt(solved.start_loss))
    for shift in range(5):
        for size in (1e-3, 1.0):
            moved = solved.weight + size * normal(classes, width, seed=seed + shift)
            beside = None if solved.bias is None else solved.bias + size * normal(classes, seed=seed + shift + 50)
            # by strong convexity the solution is within |gradient|² C / 4μ of the best
            assert float(objective(fit, given, moved, beside, pull)) >= best - 1e-12 * (length**2 * classes / pull + 1)


def test_the_reported_gradient_is_the_gradient() -> None:
    for fit in (fit_logits, fit_values):
        given = case()
        solved = fit(*given, pull=1e-2)
        length = float(torch.cat([given.features, torch.ones(60, 1).double()], 1).square().sum(1).mean().sqrt())
        unit = length * (1 if fit is fit_logits else math.sqrt(solved.start_loss))
        assert gradient_norm(fit, given, solved, 1e-2) / unit == pytest.approx(solved.gradient, rel=1e-4, abs=1e-14)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [0.03, 1.0, 30.0])
def test_hard_labels_and_a_zero_start_are_logistic_regression(classes: int, strength: float) -> None:
    """scikit-learn minimises Σ_x CE + ‖H‖² / 2C' over weights: μ / C = 1 / (2 C' N). Two classes are one row there,
    h = H₁ - H₀ with ‖H‖² = h²/2 at the optimum, so its C' is twice ours."""
    given = case(150, 6, classes, bias=False)
    labels = given.targets.argmax(1)
    assert len(labels.unique()) == classes
    pull = classes / (2 * strength * len(labels))
    ours = fit_logits(given.features, hard_targets(given.targets), torch.zeros_like(given.weight), pull=pull)
    theirs = LogisticRegression(
        C=strength * (2 if classes == 2 else 1), fit_intercept=False, tol=1e-10, max_iter=10_000
    ).fit(given.features.numpy(), labels.numpy())
    expected = torch.from_numpy(theirs.predict_proba(given.features.numpy()))
    torch.testing.assert_close(probabilities(ours, given.features), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pull", [1e-3, 1.0])
def test_values_solve_the_normal_equations(bias: bool, pull: float) -> None:
    given = case(30, 7, 3, bias=bias)
    solved = fit_values(*given, pull=pull)
    z = torch.cat([given.features, torch.ones(30, 1).double()], 1) if bias else given.features
    start = given.weight if given.bias is None else torch.cat([given.weight, given.bias[:, None]], 1)
    left = z.T @ z / 30 + pull * torch.eye(z.shape[1]).double()
    expected = torch.linalg.solve(left, z.T @ given.targets / 30 + pull * start.T).T
    torch.testing.assert_close(solved.weight, expected[:, :7])
    if bias:
        assert solved.bias is not None
        torch.testing.assert_close(solved.bias, expected[:, 7])


def test_a_single_value_an_item_is_one_output() -> None:
    given = case(20, 4, 1)
    flat = fit_values(given.features, given.targets[:, 0] * 3, given.weight, given.bias, pull=0.1)
    column = fit_values(given.features, given.targets * 3, given.weight, given.bias, pull=0.1)
    assert torch.equal(flat.weight, column.weight)
    assert flat.loss == column.loss


@both
def test_the_strongest_pull_gives_the_start(fit: Fit) -> None:
    given = case()
    solved = fit(*given, pull=1e12)
    torch.testing.assert_close(solved.weight, given.weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(solved.bias, given.bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pull", [1e-9, 1e-300])
def test_hardly_any_pull_separates_what_can_be_separated_and_stays_finite(pull: float) -> None:
    given = case(20, 32, 4)  # fewer items than features: any labels can be told apart
    labels = hard_targets(given.targets)
    solved = fit_logits(given.features, labels, given.weight, given.bias, pull=pull)
    assert bool(torch.isfinite(solved.weight).all())
    assert torch.equal(probabilities(solved, given.features).argmax(1), labels.argmax(1))
    assert solved.loss < 1e-4
    assert solved.gradient <= 1e-6
    values = fit_values(given.features, given.targets, given.weight, given.bias, pull=pull)
    assert values.loss < max(1e-20, 1e3 * pull)


@both
def test_directions_without_items_stay_at_the_start(fit: Fit) -> None:
    given = case(6, 10, 3, bias=False)
    solved = fit(*given, pull=1e-9)
    beyond = torch.linalg.svd(given.features).Vh[6:]
    torch.testing.assert_close(solved.weight @ beyond.T, given.weight @ beyond.T, rtol=0, atol=1e-6)


@both
def test_items_twice_are_items_once(fit: Fit) -> None:
    given = case()
    twice = given._replace(features=given.features.repeat(2, 1), targets=given.targets.repeat(2, 1))
    once, doubled = (fit(*one, pull=1e-2) for one in (given, twice))
    torch.testing.assert_close(doubled.weight, once.weight, rtol=0, atol=1e-4)
    assert doubled.loss == pytest.approx(once.loss, rel=1e-9)


@both
def test_the_order_of_items_and_threads_matter_by_rounding_only(fit: Fit) -> None:
    given = case(400, 20, 5)
    tight = {"gradient_tolerance": 1e-10} if fit is fit_logits else {}
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    solved = fit(*given, pull=1e-2, **tight)
    shuffled = fit(given.features[order], given.targets[order], given.weight, given.bias, pull=1e-2, **tight)
    torch.testing.assert_close(shuffled.weight, solved.weight, rtol=0, atol=1e-7)
    torch.set_num_threads(2)
    threaded = fit(*given, pull=1e-2, **tight)
    torch.set_num_threads(1)
    torch.testing.assert_close(threaded.weight, solved.weight, rtol=0, atol=1e-7)
    again = fit(*given, pull=1e-2, **tight)
    assert torch.equal(again.weight, solved.weight)


@both
def test_float32_is_near_float64_and_comes_back_as_such(fit: Fit) -> None:
    given = case()
    single = Case(*(None if one is None else one.float() for one in given))
    exact, rounded = fit(*given, pull=1e-2), fit(*single, pull=1e-2)
    assert rounded.weight.dtype == torch.float32
    assert rounded.bias is not None
    assert rounded.bias.dtype == torch.float32
    torch.testing.assert_close(rounded.weight.double(), exact.weight, rtol=1e-3, atol=1e-3)
    half = fit(given.features.half(), given.targets.half(), given.weight.half(), None, pull=1e-2)
    assert half.weight.dtype == torch.float16


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_large_logit_scales_on_normalised_features(scale: float) -> None:
    given = case(120, 16, 10, bias=False)
    features = torch.nn.functional.normalize(given.features, dim=1)
    weight = scale * torch.nn.functional.normalize(given.weight, dim=1)
    solved = fit_logits(features, given.targets, weight, pull=1e-4)
    assert solved.gradient <= 1e-6
    assert solved.loss < solved.start_loss


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_the_size_of_features_is_no_matter_if_the_pull_follows_it(size: float) -> None:
    given = case(bias=False)
    solved = fit_logits(*given, pull=1e-2)
    resized = fit_logits(given.features * size, given.targets, given.weight / size, pull=1e-2 * size**2)
    torch.testing.assert_close(resized.weight * size, solved.weight, rtol=0, atol=1e-3)
    assert resized.loss == pytest.approx(solved.loss, rel=1e-9)


def test_features_that_differ_a_thousandfold_take_few_iterations() -> None:
    given = case(300, 16, 4)
    features = given.features * torch.logspace(-1, 2, 16).double() + 5
    solved = fit_logits(features, given.targets, 0.01 * given.weight, given.bias, pull=1e-4)
    assert solved.gradient <= 1e-6
    assert solved.iterations < 500


def test_maps_are_their_places() -> None:
    given = case(6 * 12, 5, 3)
    assert given.bias is not None
    maps, targets = (one.reshape(6, 3, 4, -1).movedim(-1, 1) for one in (given.features, given.targets))
    kernel = given.weight[:, :, None, None]
    for fit in (fit_logits, fit_values):
        places = fit(*given, pull=1e-2)
        solved = fit(maps, targets, kernel, given.bias, pull=1e-2)
        assert solved.weight.shape == kernel.shape
        torch.testing.assert_close(solved.weight[:, :, 0, 0], places.weight, rtol=0, atol=1e-9)
        torch.testing.assert_close(solved.bias, places.bias, rtol=0, atol=1e-9)
        outputs = conv2d(maps, solved.weight, solved.bias)
        assert float((outputs - targets).square().mean()) < float(
            (conv2d(maps, kernel, given.bias) - targets).square().mean()
        )


@both
def test_slices_add_up_to_the_whole(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(50, 6, 3)
    whole = fit(*given, pull=1e-2)
    monkeypatch.setattr("taskmerge.numerics.solved_heads.ROWS", 7)
    assert ROWS > 50
    sliced = fit(*given, pull=1e-2)
    torch.testing.assert_close(sliced.weight, whole.weight, rtol=0, atol=1e-5)
    assert sliced.loss == pytest.approx(whole.loss, rel=1e-9)


@both
def test_where_all_is_zero_the_start_comes_back(fit: Fit) -> None:
    features, weight = torch.zeros(4, 3), normal(2, 3, seed=0).float()
    solved = fit(features, torch.full((4, 2), 0.5), weight, pull=1e-3)
    assert torch.equal(solved.weight, weight)
    assert solved.loss == solved.start_loss
    assert solved.gradient == 0
    nothing = fit(features, torch.full((4, 2), 0.5), torch.zeros(2, 3), torch.full((2,), 0.5), pull=1e-3)
    assert torch.equal(nothing.weight, torch.zeros(2, 3))


def test_a_start_that_is_the_solution_is_returned_bit_for_bit() -> None:
    given = case()
    assert given.bias is not None
    own = soft_targets(given.features @ given.weight.T + given.bias)
    solved = fit_logits(given.features, own, given.weight, given.bias, pull=1e-3)
    assert torch.equal(solved.weight, given.weight)
    assert solved.iterations == 0


def test_the_inputs_are_left_alone_and_the_iterations_end() -> None:
    given = case()
    copies = [None if one is None else one.clone() for one in given]
    cut = fit_logits(*given, pull=1e-4, most_iterations=2)
    assert cut.iterations == 2
    assert cut.gradient > 1e-6
    assert cut.loss < cut.start_loss
    for one, copy in zip(given, copies, strict=True):
        assert one is None or (copy is not None and torch.equal(one, copy))


@both
@pytest.mark.parametrize("name", ["features", "targets", "weight", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_a_bad_number_that_is_named(fit: Fit, name: str, value: float) -> None:
    broken = case()._asdict()
    broken[name] = broken[name].clone()
    broken[name].view(-1)[3] = value
    with pytest.raises(BadNumber, match=name) as raised:
        fit(**broken, pull=1e-3)
    assert raised.value.exit_code == 7


@both
def test_overflow_is_a_bad_number(fit: Fit) -> None:
    given = case()
    with pytest.raises(BadNumber, match="overflow"):
        fit(given.features * 1e200, given.targets, given.weight * 1e200, pull=1e-3)


@both
def test_no_items_and_no_pull_are_wrong_usage(fit: Fit) -> None:
    given = case()
    with pytest.raises(UsageError, match="no items"):
        fit(given.features[:0], given.targets[:0], given.weight, given.bias, pull=1e-3)
    for pull in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="pull"):
            fit(*given, pull=pull)


@both
def test_shapes_that_do_not_fit_together_are_a_mismatch(fit: Fit) -> None:
    given = case()
    for wrong in (
        given._replace(features=given.features[:, :-1]),
        given._replace(targets=given.targets[:-1]),
        given._replace(targets=given.targets[:, :-1]),
        given._replace(features=given.features[..., None]),
    ):
        with pytest.raises(Mismatch) as raised:
            fit(*wrong, pull=1e-3)
        assert raised.value.exit_code == 4


def test_targets_must_be_probabilities() -> None:
    given = case()
    for wrong in (given.targets * 2, given.targets - 0.5):
        with pytest.raises(UsageError, match="probabilities"):
            fit_logits(given.features, wrong, given.weight, given.bias, pull=1e-3)


@PROPERTY
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([(), (2, 3)]), st.integers(0, 99))
def test_targets_of_logits(items: int, classes: int, places: tuple[int, ...], seed: int) -> None:
    logits = 5 * normal(items, classes, *places, seed=seed)
    soft, hard = soft_targets(logits, 2.0), hard_targets(logits)
    torch.testing.assert_close(soft, (logits / 2).exp() / (logits / 2).exp().sum(1, keepdim=True))
    torch.testing.assert_close(soft.sum(1), torch.ones(items, *places).double())
    torch.testing.assert_close(soft_targets(logits, 1e-9), hard)
    assert torch.equal(hard.argmax(1), logits.argmax(1))
    assert torch.equal(hard.sum(1), torch.ones(items, *places).double())


def test_the_first_of_equal_logits_is_the_hard_target() -> None:
    assert hard_targets(torch.tensor([[1.0, 2.0, 2.0]])).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature"):
        soft_targets(torch.zeros(1, 2), temperature)
