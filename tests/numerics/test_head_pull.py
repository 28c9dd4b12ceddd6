"""The pull of solved heads: what items left out of the fit say, against a loop that is written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from taskmerge.adaptation.fitted import fit_head
from taskmerge.models.heads import LinearHead
from taskmerge.numerics.head_pull import FOLDS, PULLS, pull_of_logits, pull_of_values
from taskmerge.numerics.solved_heads import Solved, fit_logits, fit_values, soft_targets
from taskmerge.specs.adapt import AdaptSpec


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int) -> Tensor:
    return nn.functional.normalize(normal(*shape, seed=seed), dim=1)


both = pytest.mark.parametrize(
    ("choose", "targets"), [(pull_of_logits, soft_targets), (pull_of_values, lambda outputs: outputs)]
)


@both
def test_what_the_features_tell_is_learnt_from_many_items(
    choose: Callable[..., float], targets: Callable[[Tensor], Tensor]
) -> None:
    features, truth = unit(400, 6, seed=0), 10 * normal(3, 6, seed=1)
    assert choose(features, targets(features @ truth.T), torch.zeros(3, 6).double()) <= 1e-3


@both
def test_what_the_features_do_not_tell_leaves_the_head_where_it_is(
    choose: Callable[..., float], targets: Callable[[Tensor], Tensor]
) -> None:
    features, noise = unit(48, 40, seed=0), 3 * normal(48, 3, seed=1)
    assert choose(features, targets(noise), torch.zeros(3, 40).double()) >= 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_over_parts_and_pulls_chooses_the_same(seed: int) -> None:
    items, features = 30, unit(30, 12, seed=seed)
    weight, bias = normal(4, 12, seed=seed + 1), normal(4, seed=seed + 2)
    outputs = features @ (weight + normal(4, 12, seed=seed + 3)).T + 0.5 * normal(items, 4, seed=seed + 4)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(items)).tolist()

    def left_out(fit: Callable[..., Solved], loss: Callable[..., Tensor], targets: Tensor, pull: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            part = [item for place, item in enumerate(order) if place % FOLDS == fold]
            rest = [item for item in range(items) if item not in part]
            solved = fit(features[rest], targets[rest], weight, bias, pull=pull)
            assert solved.bias is not None
            total += float(loss(features[part] @ solved.weight.T + solved.bias, targets[part])) * len(part)
        return total

    soft = soft_targets(outputs)
    assert pull_of_logits(features, soft, weight, bias) == min(
        PULLS, key=lambda pull: left_out(fit_logits, cross_entropy, soft, pull)
    )
    assert pull_of_values(features, outputs, weight, bias) == min(
        PULLS, key=lambda pull: left_out(fit_values, mse_loss, outputs, pull)
    )


def test_places_of_a_map_are_left_out_with_their_item() -> None:
    features, weight = normal(9, 5, 2, 3, seed=0), normal(4, 5, 1, 1, seed=1)
    assert pull_of_logits(features, soft_targets(normal(9, 4, 2, 3, seed=2)), weight) in PULLS
    assert pull_of_values(features, normal(9, 4, 2, 3, seed=2), weight) in PULLS


def test_too_few_items_to_leave_any_out_pull_the_most() -> None:
    targets = soft_targets(normal(FOLDS - 1, 4, seed=1))
    assert pull_of_logits(normal(FOLDS - 1, 3, seed=0), targets, normal(4, 3, seed=2)) == PULLS[0]
    assert pull_of_values(normal(1, 3, seed=0), torch.ones(1).double(), normal(1, 3, seed=2)) == PULLS[0]


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("pull", [None, 1e-2])
def test_a_fitted_head_does_not_depend_on_the_length_of_features(kind: str, pull: float | None) -> None:
    outputs = 1 if kind == "regression" else 4
    features, weight, bias = normal(80, 6, seed=0), normal(outputs, 6, seed=1), normal(outputs, seed=2)
    expert = 4 * features @ normal(outputs, 6, seed=3).T + normal(80, outputs, seed=4)
    expert = expert[:, 0] if kind == "regression" else expert
    spec = AdaptSpec(head_pull=pull)
    found = []
    for size in (1.0, 1000.0):
        head = LinearHead(weight / size, bias, normalise=False, regression=kind == "regression")
        solved = fit_head(head, features * size, expert, kind, spec)
        found.append((solved.pull, head.weight.detach() * size, head.bias.detach()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-5)
