"""SLERP: from one expert to another along the great circle."""

import math
from typing import Annotated

from taskmerge.methods.contract import Laws, method
from taskmerge.methods.options import Option
from taskmerge.numerics.inner import gram
from taskmerge.types import Merged, Stack

NEARLY_PARALLEL = 0.9995


def shares_on_arc(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """The two experts' coefficients from their squared norms and their inner product.

    sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω; 1-t and t where |cos Ω| > 0.9995 or a vector is zero, which has no direction.
    """
    if first <= 0 or second <= 0:
        return 1 - t, t
    cosine = product / math.sqrt(first) / math.sqrt(second)
    if abs(cosine) > NEARLY_PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@method(
    space="weight",
    reads="tensor",
    title="SLERP: spherical linear interpolation",
    formula="θ = sin((1-t)Ω)/sin Ω · θ₁ + sin(tΩ)/sin Ω · θ₂, cos Ω = ⟨θ₁, θ₂⟩ / ‖θ₁‖‖θ₂‖ tensor by tensor",
    paper="doi:10.1145/325165.325242",
    tasks=(2, 2),
    notes=(
        "exactly two experts, the first in sorted order at t = 0; between weights, so it reads no base",
        "nearly parallel tensors (|cos| > 0.9995), opposite ones included, are interpolated linearly, as in mergekit",
        "a tensor that is all zero in one expert is interpolated linearly; mergekit takes a right angle there",
    ),
    laws=Laws(symmetric=False, shifts=False, equal_experts={}),  # t counts from the first; the angle from zero
)
def slerp(stack: Stack, *, t: Annotated[float, Option("0: first expert, 1: second", low=0, high=1)] = 0.5) -> Merged:
    """The point at t on the arc between two experts, each tensor flattened.

    Shoemake's slerp on vectors that are not of unit length: the angle comes from the normalised ones, the
    coefficients act on the experts themselves.
    """
    products = gram(stack)
    near, far = shares_on_arc(float(products[0, 0]), float(products[1, 1]), float(products[0, 1]), t)
    return (stack[0] * near).add_(stack[1], alpha=far)
