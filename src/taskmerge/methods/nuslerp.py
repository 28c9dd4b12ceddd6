"""NuSLERP: from one task vector to another along the great circle, as far as the weights say."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from taskmerge.methods.contract import Laws, method
from taskmerge.methods.options import Option
from taskmerge.numerics.inner import SLICE, gram
from taskmerge.types import Merged, Stack, Weights

Scope = Literal["tensor", "row", "column"]

STRAIGHT = 1e-3  # sine of the angle up to which the arc is its chord, to float32's rounding
CANCELS = 1e-6  # share of the weights up to which their sum counts as zero


def place(weights: Weights) -> float:
    """t = w_2 / (w_1 + w_2): 0 is the first expert, 1 the second; 1/2 where the weights cancel."""
    first, second = weights.tolist()
    total = first + second
    return second / total if abs(total) > CANCELS * (abs(first) + abs(second)) else 0.5


def arcs(first: Tensor, second: Tensor, product: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Both coefficients of pairs of vectors, from their squared lengths and inner products (all float64 [pair]).

    sin((1-t)θ) / sin θ and sin(tθ) / sin θ; 1 - t and t where sin θ ≤ 1e-3, opposite vectors included, or where a
    vector is zero.
    """
    lengths = first.sqrt() * second.sqrt()
    angle = torch.arccos((product / torch.where(lengths > 0, lengths, 1.0)).clamp(-1, 1))
    sine = torch.sin(angle)
    bent = (lengths > 0) & (sine > STRAIGHT)
    divisor = torch.where(bent, sine, 1.0)
    near = torch.where(bent, torch.sin((1 - t) * angle) / divisor, 1 - t)
    return near, torch.where(bent, torch.sin(t * angle) / divisor, t)


def inner_products(pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩ of pairs [2, pair, length]: float64 [pair], a few pairs at a time."""
    products = torch.empty(3, pairs.shape[1], dtype=torch.float64, device=pairs.device)
    count = max(1, SLICE // max(1, pairs.shape[2]))
    for start in range(0, pairs.shape[1], count):
        first, second = pairs[:, start : start + count].double()
        for out, (left, right) in zip(products, ((first, first), (second, second), (first, second)), strict=True):
            out[start : start + count] = (left * right).sum(dim=1)
    own, other, mutual = products
    return own, other, mutual


@method(
    space="delta",
    reads="tensor",
    title="NuSLERP: spherical interpolation of task vectors",
    formula="θ = θ₀ + sin((1-t)Ω)/sin Ω · τ₁ + sin(tΩ)/sin Ω · τ₂, cos Ω = ⟨τ₁, τ₂⟩ / ‖τ₁‖‖τ₂‖, t = w₂ / (w₁ + w₂)",
    paper="doi:10.1145/325165.325242",
    tasks=(2, 2),
    notes=(
        "on task vectors, as mergekit with a base model; without one mergekit's is `slerp --t`, between weights",
        "`nuslerp_flatten: false` of mergekit is `--scope row`; with `nuslerp_row_wise`, whose vectors run along the "
        "first dimension, `--scope column`",
        "nearly parallel and opposite vectors (sin Ω up to 0.001) are interpolated linearly; mergekit only below 1e-8, "
        "which float32 cannot tell from zero",
        "a task vector of zero is interpolated linearly; mergekit takes a right angle there",
    ),
    laws=Laws(equal_experts={}),
)
def nuslerp(
    stack: Stack,
    weights: Weights,
    *,
    scope: Annotated[Scope, Option("what is one vector: the tensor, or each row or column of it")] = "tensor",
) -> Merged:
    """The point on the arc between two task vectors, at the second one's share of the weights.

    Shoemake's slerp on vectors that are not of unit length: the angle comes from the normalised ones, the coefficients
    act on the task vectors themselves. A row runs along the last dimension, a column along the first; scalars and
    vectors are one vector each. Weights that cancel count as equal, as in mergekit.
    """
    t = place(weights)
    if scope == "tensor" or stack.dim() <= 2:
        products = gram(stack)
        near, far = arcs(products[0, 0], products[1, 1], products[0, 1], t)
        return (stack[0] * float(near)).add_(stack[1], alpha=float(far))
    turned = stack if scope == "row" else stack.movedim(1, -1)
    pairs = turned.reshape(2, math.prod(turned.shape[1:-1]), turned.shape[-1])
    near, far = (values.to(stack.dtype)[:, None] for values in arcs(*inner_products(pairs), t))
    merged = (pairs[0] * near).add_(pairs[1] * far).view(turned.shape[1:])
    return merged if scope == "row" else merged.movedim(-1, 0).contiguous()
