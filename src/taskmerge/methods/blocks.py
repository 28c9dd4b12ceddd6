"""Own blocks: one block of the encoder a task, matched to its expert's features, on a merged model that stays."""

from taskmerge.methods.adaptive import Block, Parts, adaptive


@adaptive(
    title="Own blocks matched to the experts' features",
    formula="min Σ_t ‖z_t(x) - z*_t(x)‖², z_t with its own block on a frozen merge, z*_t the expert's; then H_t fitted",
    paper="doi:10.48550/arXiv.1412.6550",
    notes=(
        "everything below the block is computed once an item, so that an update costs what the block costs",
        "a task keeps one block of its own: one part in as many as the encoder has blocks",
    ),
    unpublished=True,
)
def blocks() -> Parts:
    """Every task's own last block, brought to its expert's features on a merged model; then heads, solved for.

    The block starts at the expert's own (`--block-start merged`: at the merged weights) and learns by the mean square
    distance of features; `--layer` names another block, or `late`: the upper half.
    """
    return Parts(
        origin="init", learns={"block": Block(layer="last", start="expert")}, objective="l2", on="features",
        updates="sequential", iterations=200, batch_size=32, refit=True,
    )  # fmt: skip
