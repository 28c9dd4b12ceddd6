"""The parts of adaptive methods in words, for plans and for the catalogue."""

from taskmerge.methods.adaptive import (
    Adapter,
    Block,
    Coefficients,
    Heads,
    Learnable,
    Masks,
    Parts,
    Relaxed,
    Trimmed,
    Truncated,
)  # fmt: skip

STARTS = {"given": "from the suite's", "fitted": "solved for", "random": "from random ones"}
TURNS = {"joint": "one update of all tasks", "sequential": "one update a task"}

ENTRIES = "entries"
"""What relaxed masks are of: drawn anew at every update, they have no bits that flip."""


def masked(parts: Parts) -> str:
    """What masks are of."""
    return ENTRIES if parts.of(Relaxed) is not None else "components"


def components(parts: Parts) -> str:
    """What is combined."""
    if isinstance(parts.components, Truncated):
        return f"components of task vectors ({parts.components.rank.understood})"
    if isinstance(parts.components, Trimmed):
        return f"task vectors trimmed to {parts.components.density:g}"
    return "task vectors"


def learnt(parts: Parts) -> str:
    """Everything that is learnt."""
    refit = ["heads solved for at the end"] if parts.refit else []
    return "; ".join([*map(_learnable, parts.learns.values()), *refit])


def _learnable(one: Learnable) -> str:
    match one:
        case Coefficients():
            each = "task and tensor" if one.layout == "tensor" else "task"
            return f"coefficients, one a {each}{', clamped to [0, 1]' if one.clamped else ''}"
        case Masks():
            return f"masks of components, at first {one.kept.understood}"
        case Relaxed():
            return "one mask over entries for all tasks, relaxed"
        case Heads():
            return f"heads {STARTS[one.start]}"
        case Block():
            start = ", from its expert's" if one.start == "expert" else ""
            return f"a block of every task's own ({one.layer}{start})"
        case Adapter():
            return f"{one.kind} adapters of width {one.size}"


def objective(parts: Parts) -> str:
    """What is minimised, and on which items."""
    against = "" if parts.objective == "entropy" else f" on {parts.on}, against the experts"
    return f"{parts.objective}{against}" + ("" if parts.filter == "none" else f", filter {parts.filter}")


def horizon(parts: Parts) -> str:
    """How long, and in what turns; empty where there are no updates."""
    if parts.iterations == 0:
        return ""
    if parts.iterations is None:
        return f"one pass over the items, {parts.batch_size} of a task at a time, {TURNS[parts.updates]}"
    return f"{parts.iterations:,} iterations of {parts.batch_size} items a task, {TURNS[parts.updates]}"
