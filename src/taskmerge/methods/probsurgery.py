"""ProbSurgery: Representation Surgery whose correction is a distribution."""

from typing import Annotated

from taskmerge.methods.adaptive import Adapter, Parts, adaptive
from taskmerge.methods.options import Option

PENALTY = 1e-4


@adaptive(
    title="ProbSurgery: probabilistic feature adapters",
    formula="z' = z - N(A h, exp(B h)), h = ReLU(E z): min Σ_t ‖z' - z_t‖₁ + β KL(· ‖ N(0, 1))",
    paper="doi:10.48550/arXiv.2504.13037",
    parity={"iterations": 500, "batch_size": 16, "adapter": 1e-3},
    notes=("the mean alone corrects at evaluation; β is 1e-4 as in the authors' code, KL summed over features",),
)
def probsurgery(*, size: Annotated[int, Option("width of the hidden layer", low=1)] = 128) -> Parts:
    """Surgery with a normal distribution of corrections, drawn while it learns, its mean applied afterwards."""
    return Parts(
        origin="init", learns={"adapter": Adapter(kind="probabilistic", size=size, penalty=PENALTY)},
        objective="l1", on="features", updates="sequential", iterations=500,
    )  # fmt: skip
