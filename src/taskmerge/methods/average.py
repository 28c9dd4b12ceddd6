"""Weight averaging."""

from taskmerge.methods.contract import Laws, Work, method
from taskmerge.numerics.centre import mean
from taskmerge.types import Merged, Stack, Weights


@method(
    space="weight",
    reads="elements",
    title="Weight averaging (model soup)",
    formula="θ = Σ_t w_t θ_t / Σ_t w_t",
    paper="arXiv:2203.05482",
    aliases=("linear", "simple_average", "weighted_average"),
    laws=Laws(equal_experts={}),
    work=Work(sweeps=1),
)
def average(stack: Stack, weights: Weights) -> Merged:
    """The (weighted) mean of the experts.

    θ̄ = Σ w_t θ_t / Σ w_t (Wortsman et al., Model soups); needs no base. Works on any stack of one shape.
    """
    return mean(stack, weights)
