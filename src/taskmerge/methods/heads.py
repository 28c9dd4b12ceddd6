"""Heads fitted to convergence on a merged model's features by the experts' soft labels: convex, nothing to tune."""

from taskmerge.methods.adaptive import Heads, Parts, adaptive


@adaptive(
    title="Heads fitted to convergence",
    formula="H_t = argmin_H mean_x CE(softmax(z(x) Hᵀ), softmax(expert's logits)) + μ ‖H - H_t⁰‖²/C",
    paper="doi:10.48550/arXiv.1503.02531",
    notes=(
        "the problem is convex: the result depends on no seed, batch or learning rate",
        "it bounds what head-only training (tint, symerge) can reach on the same encoder by the same loss",
    ),
    unpublished=True,
)
def heads() -> Parts:
    """Every task's head, solved for on the frozen features of a merged model by its expert's soft labels.

    One forward an item and a convex problem; regression by ridge. The encoder is any static merge or file (`--init`).
    """
    return Parts(origin="init", learns={"heads": Heads(start="fitted")}, objective="soft", iterations=0)
