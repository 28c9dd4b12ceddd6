"""Representation Surgery: a small module on each task's features brings them to the expert's."""

from typing import Annotated

from taskmerge.methods.adaptive import Adapter, Parts, adaptive
from taskmerge.methods.options import Option


@adaptive(
    title="Representation Surgery: feature adapters on a merged model",
    formula="z' = z - U ReLU(D z): min Σ_t ‖z' - z_t‖₁, z_t the expert's features",
    paper="arXiv:2402.02705",
    parity={"iterations": 1000, "batch_size": 16, "adapter": 1e-3},
    notes=(
        "the paper's rows `w/ Ada.` and `w/ TA` start from such merges: `--init FOLDER`, `--init task_arithmetic`",
        "the authors run 1,000 updates of 16 items a task",
    ),
)
def surgery(*, size: Annotated[int, Option("width of the adapter", low=1)] = 16) -> Parts:
    """A low-rank adapter a task on the features of a merged model, which stays as it is.

    Fitted to the expert's features by their mean absolute difference (Yang et al., eq. 5). Needs no label.
    """
    return Parts(
        origin="init", learns={"adapter": Adapter(kind="surgery", size=size)}, objective="l1", on="features",
        updates="sequential", iterations=1000,
    )  # fmt: skip
