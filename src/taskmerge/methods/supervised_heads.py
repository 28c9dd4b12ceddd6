"""The pilot study's supervised heads: fitted to labels on a frozen merged encoder."""

from taskmerge.methods.adaptive import Heads, Parts, adaptive


@adaptive(
    title="Supervised heads (needs labels)",
    formula="min Σ_t CE(H_t(θ(x)), y) on a frozen merged encoder θ",
    paper="arXiv:2412.19098",
    notes=("this is no adaptation: it reads the labels of the split, and every output says so",),
)
def supervised_heads() -> Parts:
    """Heads trained with labels for one pass over the items, on the frozen features of a merged model.

    The pilot study of Model Tinting: what a task-specific head alone could win (Jung et al., sec. 3).
    """
    return Parts(
        origin="init", learns={"heads": Heads()}, objective="self", updates="sequential", iterations=None,
        batch_size=32, supervised=True,
    )  # fmt: skip
