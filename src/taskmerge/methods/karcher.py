"""Karcher mean: the experts' directions averaged on the sphere, at their mean length."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.options import Option
from taskmerge.numerics.centre import mean, shares
from taskmerge.numerics.inner import gram
from taskmerge.types import Merged, Stack, Weights

CANCELS = 1e-6  # share that float32 leaves of a sum that cancels: what is shorter has no direction
FLAT = 1e-6  # sine of an angle below which a direction is the mean's own, or its opposite
ROUNDING = 1e-14  # of an inner product of long unit vectors in float64


def mean_direction(units: Tensor, parts: Tensor, tolerance: float, iterations: int) -> Tensor:
    """The Karcher mean [size] of unit vectors x_t [task, size], from Σ parts_t x_t on, which has a direction.

    μ ← exp_μ(Σ parts_t log_μ(x_t)) until the step is at most `tolerance` long, in radians; `parts` sum to 1.
    """
    mean = torch.nn.functional.normalize(parts @ units, dim=0)
    for _ in range(iterations):
        step = parts @ logarithms(mean, units)
        length = torch.linalg.vector_norm(step)
        if length <= tolerance:
            break
        mean = torch.nn.functional.normalize(torch.cos(length) * mean + torch.sin(length) / length * step, dim=0)
    return mean


def logarithms(mean: Tensor, units: Tensor) -> Tensor:
    """log_μ(x) = θ / sin θ (x - cos θ μ) of every row x, θ its angle to μ; zero for μ, and for the opposite of μ.

    The opposite lies in every direction from μ at once.
    """
    cosine = (units @ mean).clamp(-1, 1)
    sine = (1 - cosine.square()).sqrt()
    stretch = torch.where(sine > FLAT, torch.arccos(cosine) / sine.clamp(min=FLAT), 1.0)
    return stretch[:, None] * (units - cosine[:, None] * mean)


def coefficients(cosines: Tensor, parts: Tensor, tolerance: float, iterations: int) -> Tensor:
    """c [task] with Σ c_t x_t = the Karcher mean, from the inner products of the unit vectors x_t alone.

    The mean lies in the span of the x_t, so T coordinates hold all that matters. Where the c_t are not unique (equal
    experts), they are those next to the multiple of `parts` where the mean is looked for first.
    """
    values, axes = torch.linalg.eigh(cosines)
    spanned = values > ROUNDING * len(values)
    roots, axes = values[spanned].sqrt(), axes[:, spanned]
    units = axes * roots
    start: Tensor = parts / torch.linalg.vector_norm(parts @ units)
    turn: Tensor = axes @ ((mean_direction(units, parts, tolerance, iterations) - start @ units) / roots)
    return start + turn


def _cancel(parts: Tensor, cosines: Tensor) -> bool:
    """Whether Σ parts_t x_t has no direction, or there is no number in it: then there are none in the result either."""
    least = CANCELS * float(parts.abs().sum())
    length = float((parts @ cosines @ parts).clamp(min=0).sqrt())
    return not (length > least and abs(float(parts.sum())) > least)


def _combined(stack: Stack, coefficients: Sequence[float]) -> Merged:
    """Σ c_t θ_t, computed as (Σ c_t) θ_1 + Σ c_t (θ_t - θ_1): what the experts share is rounded once."""
    first, difference = stack[0], torch.empty_like(stack[0])
    total = torch.zeros_like(first)
    for row, coefficient in zip(stack[1:], coefficients[1:], strict=True):
        total.add_(torch.sub(row, first, out=difference), alpha=coefficient)
    return total.add_(first, alpha=sum(coefficients))


@method(
    space="weight",
    reads="tensor",
    title="Karcher mean on the sphere",
    formula="θ = (Σ_t w_t ‖θ_t‖) μ / Σ_t w_t, μ = argmin_{‖μ‖=1} Σ_t w_t ∠(μ, θ_t)² tensor by tensor",
    paper="arXiv:2603.04972",
    notes=(
        "mergekit stops after 10 steps or at 1e-5, with dot products in the tensors' own type, and takes no weights",
        "a tensor that is all zero in one expert counts for the length but has no direction, as in mergekit, which "
        "takes all of norm below 1e-5 for zero",
        "where the directions cancel there is no mean direction: the average is taken; mergekit starts at the first",
        "an expert opposite to the mean has no say in its direction; between weights, so it reads no base",
    ),
    laws=Laws(shifts=False, equal_experts={}),  # angles are measured from zero
    work=Work(sweeps=12),
)
def karcher(
    stack: Stack,
    weights: Weights,
    *,
    tolerance: Annotated[float, Option("length of a step (radians) at which to stop", low=0, high=1)] = 1e-10,
    iterations: Annotated[int, Option("most steps", low=1, high=1000)] = 100,
) -> Merged:
    """The point on the sphere that is nearest to all experts, as long as they are on average.

    Each tensor flattened; μ ← exp_μ(Σ w_t log_μ(θ_t / ‖θ_t‖)) until the step is short (Karcher, Riemannian center of
    mass and mollifier smoothing, 1977), in float64 on the experts' inner products, started at the mean of the
    directions. Weights act on directions and lengths. A zero tensor has no direction and length 0.
    """
    products = gram(stack)
    lengths = products.diagonal().sqrt()
    divisors = torch.where(lengths > 0, lengths, 1.0)
    cosines = products / torch.outer(divisors, divisors)
    own = torch.tensor(shares(weights), dtype=torch.float64)
    pointing = torch.where(lengths > 0, own, 0.0)
    if _cancel(pointing, cosines):
        return mean(stack, weights)
    turned = coefficients(cosines, pointing / pointing.sum(), tolerance, iterations)
    return _combined(stack, (float(own @ lengths) * turned / divisors).tolist())
