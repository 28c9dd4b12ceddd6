"""Model Stock: between the base and the average, as far as the experts' angle says."""

import math

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.numerics.inner import gram
from taskmerge.types import Merged, Stack


def share_of_average(products: torch.Tensor) -> float:
    """t = N c / (1 + (N - 1) c), within [0, 1], from the Gram matrix of N task vectors.

    c is the mean cosine of the pairs; pairs with a zero vector count as 0. c is at most 1, so t is; for c <= 0, t is 0.
    """
    tasks = len(products)
    lengths = products.diagonal().sqrt().tolist()
    cosines = [
        float(products[later, earlier]) / size if (size := lengths[later] * lengths[earlier]) else 0.0
        for later in range(tasks)
        for earlier in range(later)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    return tasks * cosine / (1 + (tasks - 1) * cosine) if cosine > 0 else 0.0


@method(
    space="delta",
    reads="tensor",
    title="Model Stock",
    formula="θ = θ₀ + t/T Σ_t τ_t, t = T c / (1 + (T - 1) c) in [0, 1], c = mean cosine of pairs of τ, by tensor",
    paper="arXiv:2403.19522",
    tasks=(2, None),
    notes=(
        "meant for fine-tunings of one task: experts of different tasks are nearly orthogonal, so t is small",
        "t is clamped to [0, 1]; mergekit's is not and leaves the base backwards where task vectors oppose each other",
    ),
    laws=Laws(equal_experts={}),
    work=Work(sweeps=12),
)
def model_stock(stack: Stack) -> Merged:
    """The average of the experts, pulled back to the base by the angle between their task vectors.

    t mean(τ) (Jang et al., for N models), each tensor flattened, t clamped to [0, 1]: opposed task vectors give
    the base itself.
    """
    total = stack[0].clone()
    for row in stack[1:]:
        total.add_(row)
    return total.mul_(share_of_average(gram(stack)) / len(stack))
