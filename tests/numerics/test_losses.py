"""Losses without labels against plain loops in float64, their gradients, and what must hold between them."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.numerics import losses
from taskmerge.numerics.losses import cosine, entropy, js, kl, l1, l2, self_label, smooth_l1, soft_self_label

PROPERTY = settings(max_examples=40, deadline=None)
Loss = Callable[[Tensor, Tensor], Tensor]
Row = Sequence[float]


def probabilities(row: Row) -> list[float]:
    shifted = [math.exp(value - max(row)) for value in row]
    return [value / sum(shifted) for value in shifted]


def entropy_by_hand(row: Row, _: Row) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities(row) if p > 0)


def cross_by_hand(row: Row, label: Row) -> float:
    largest = max(row)
    rest = math.log(math.fsum(math.exp(value - largest) for value in row))
    return math.fsum(share * (largest + rest - value) for share, value in zip(label, row, strict=True))


def self_label_by_hand(row: Row, expert: Row) -> float:
    return cross_by_hand(row, [float(c == expert.index(max(expert))) for c in range(len(row))])


def soft_by_hand(row: Row, expert: Row) -> float:
    return cross_by_hand(row, probabilities(expert))


def softer_by_hand(row: Row, expert: Row) -> float:
    return cross_by_hand(row, probabilities([value / 3 for value in expert]))


def kl_by_hand(row: Row, expert: Row) -> float:
    return soft_by_hand(row, expert) - entropy_by_hand(expert, expert)


def js_by_hand(row: Row, expert: Row) -> float:
    total = 0.0
    for one, other in ((row, expert), (expert, row)):
        for p, q in zip(probabilities(one), probabilities(other), strict=True):
            total += 0.5 * p * math.log(2 * p / (p + q)) if p > 0 else 0.0
    return total


def l1_by_hand(row: Row, expert: Row) -> float:
    return sum(abs(a - b) for a, b in zip(row, expert, strict=True)) / len(row)


def l2_by_hand(row: Row, expert: Row) -> float:
    return sum((a - b) ** 2 for a, b in zip(row, expert, strict=True)) / len(row)


def smooth_by_hand(row: Row, expert: Row) -> float:
    gaps = [abs(a - b) for a, b in zip(row, expert, strict=True)]
    return sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(row)


def cosine_by_hand(row: Row, expert: Row) -> float:
    product = sum(a * b for a, b in zip(row, expert, strict=True))
    lengths = math.hypot(*row) * math.hypot(*expert)
    return 1 - product / lengths if lengths else 1.0


def softer(logits: Tensor, expert: Tensor) -> Tensor:
    return soft_self_label(logits, expert, temperature=3.0)


ON_LOGITS: dict[str, tuple[Loss, Callable[[Row, Row], float]]] = {
    "entropy": (lambda logits, _: entropy(logits), entropy_by_hand),
    "self_label": (self_label, self_label_by_hand),
    "soft_self_label": (soft_self_label, soft_by_hand),
    "softer": (softer, softer_by_hand),
    "kl": (kl, kl_by_hand),
    "js": (js, js_by_hand),
}
ON_VALUES = {
    "l1": (l1, l1_by_hand),
    "smooth_l1": (smooth_l1, smooth_by_hand),
    "l2": (l2, l2_by_hand),
    "cosine": (cosine, cosine_by_hand),
}
EVERY = ON_LOGITS | ON_VALUES
every = pytest.mark.parametrize("name", EVERY)


def normal(shape: tuple[int, ...], seed: int, size: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def by_hand(name: str, outputs: Tensor, expert: Tensor) -> list[float]:
    """Item by item, and for maps place by place, then the mean over the places."""
    loop = EVERY[name][1]
    places = [
        (one.flatten(1).T.tolist(), other.flatten(1).T.tolist()) for one, other in zip(outputs, expert, strict=True)
    ]
    return [math.fsum(loop(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ours) for ours, theirs in places]


@every
@PROPERTY
@given(
    items=st.integers(1, 4),
    classes=st.integers(1, 6),
    places=st.sampled_from([(), (1, 1), (2, 3), (4,)]),
    size=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_loss_is_its_formula(
    name: str, items: int, classes: int, places: tuple[int, ...], size: float, seed: int, dtype: torch.dtype
) -> None:
    outputs, expert = (normal((items, classes, *places), seed + shift, size, dtype) for shift in (0, 1000))
    result = EVERY[name][0](outputs, expert)
    assert result.shape == (items,)
    assert result.dtype == dtype
    expected = torch.tensor(by_hand(name, outputs.unsqueeze(-1), expert.unsqueeze(-1)), dtype=torch.float64)
    scale = 1 + float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps * scale)


@every
@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (2, 3, 2, 2)], ids=str)
def test_gradients_are_those_of_finite_differences(name: str, shape: tuple[int, ...]) -> None:
    loss, expert = EVERY[name][0], normal(shape, 7)
    outputs = normal(shape, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: loss(values, expert), outputs)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [[[1e4, -1e4, 0.0]], [[-1e4, -1e4, -1e4]], [[0.0, 0.0, 0.0]], [[1e4]], [[-1e4, 1e4]]])
def test_extreme_outputs_give_finite_losses_and_gradients(
    name: str, dtype: torch.dtype, rows: list[list[float]]
) -> None:
    outputs = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for expert in (outputs.detach(), outputs.detach().flip(1), -outputs.detach(), torch.zeros_like(outputs)):
        (gradient,) = torch.autograd.grad(EVERY[name][0](outputs, expert).sum(), outputs)
        assert torch.isfinite(EVERY[name][0](outputs, expert)).all()
        assert torch.isfinite(gradient).all()


@every
def test_no_items_give_no_losses(name: str) -> None:
    assert EVERY[name][0](torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert EVERY[name][0](torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2)).shape == (0,)


@pytest.mark.parametrize("loss", [l1, l2, smooth_l1])
def test_single_values_an_item_are_compared_as_they_are(loss: Loss) -> None:
    outputs, expert = normal((5,), 1), normal((5,), 2)
    torch.testing.assert_close(loss(outputs, expert), loss(outputs[:, None], expert[:, None]))


@PROPERTY
@given(st.integers(1, 5), st.integers(1, 7), st.floats(0.1, 100), st.integers(0, 999))
def test_what_must_hold_between_them(items: int, classes: int, size: float, seed: int) -> None:
    logits, expert = normal((items, classes), seed, size), normal((items, classes), seed + 1000, size)
    tiny, shifted = 1e-12 * (1 + size), 1e-9 * (1 + size)
    spread, divergence, symmetric = entropy(logits), kl(logits, expert), js(logits, expert)
    assert bool(((spread >= -tiny) & (spread <= math.log(classes) + tiny)).all())
    assert bool((divergence >= -tiny).all())
    assert bool(((symmetric >= -tiny) & (symmetric <= math.log(2) + tiny)).all())
    torch.testing.assert_close(symmetric, js(expert, logits), rtol=0, atol=tiny)
    torch.testing.assert_close(soft_self_label(logits, expert), divergence + entropy(expert), rtol=1e-9, atol=tiny)
    torch.testing.assert_close(kl(logits, logits), torch.zeros(items, dtype=torch.float64), rtol=0, atol=tiny)
    for loss in (kl, js, self_label, soft_self_label):
        torch.testing.assert_close(loss(logits + 5, expert - 3), loss(logits, expert), rtol=0, atol=shifted)
    cold = soft_self_label(logits, expert, temperature=1e-9)
    torch.testing.assert_close(cold, self_label(logits, expert), rtol=1e-9, atol=tiny)


@every
def test_an_item_does_not_see_the_others(name: str) -> None:
    outputs, expert = normal((6, 5, 2, 3), 3), normal((6, 5, 2, 3), 4)
    together = EVERY[name][0](outputs, expert)
    apart = [EVERY[name][0](outputs[item : item + 1], expert[item : item + 1]) for item in range(6)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_every_public_loss_is_tested() -> None:
    public = {name for name, value in vars(losses).items() if getattr(value, "__module__", "") == losses.__name__}
    assert {name for name in public if not name.startswith("_")} == set(EVERY) - {"softer"}
