"""DARE: drop entries of the task vectors at random and rescale the rest."""

from typing import Annotated

import torch

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.methods.kernel import Uniform
from taskmerge.methods.options import Option
from taskmerge.types import Stack


@method(
    space="delta",
    reads="elements",
    title="DARE: drop and rescale",
    formula="τ̃_t = m_t ∘ τ_t / p, m_t ~ Bernoulli(p), then merged by --then",
    paper="arXiv:2311.03099",
    gives="task_vectors",
    notes=(
        "density is the share kept: the paper's drop rate p is 1 - density",
        "the mean over seeds of DARE followed by task arithmetic is task arithmetic",
        "dropped at random by seed, task, tensor name and element, so threads, shards and order change nothing",
        "mergekit's `rescale` restores each tensor's L1 norm instead of dividing by the density",
    ),
    aliases=("dare_linear",),
    laws=Laws(zero_task={}),
    work=Work(sweeps=25),
)
def dare(
    stack: Stack,
    uniform: Uniform,
    *,
    density: Annotated[float, Option("share of entries kept", low=1e-6, high=1)] = 0.8,
) -> Stack:
    """Every entry kept with probability `density` and divided by it, else zero.

    m ∘ τ / density with independent m (Yu et al.); returns as many task vectors, each made from its own row.
    """
    kept = uniform().lt_(density)
    result = torch.empty_like(stack)
    for row, chosen, out in zip(stack, kept, result, strict=True):
        torch.mul(row, chosen, out=out).mul_(1 / density)
    return result
