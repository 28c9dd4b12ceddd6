"""Which checkpoints of an evaluation a plot draws: the experts as one, and the best of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

from taskmerge.evaluation.selection import BASE, EXPERT, EXPERTS

MOST = 6
"""Checkpoints in one plot: more of them would hide each other."""
Row = Mapping[str, Any]


def own_rows(document: Mapping[str, Any]) -> list[Row]:
    """The rows on data as it is, experts on their own task alone."""
    return [row for row in document["rows"] if row["corruption"] is None and _is_own(row)]


def _is_own(row: Row) -> bool:
    return not row["checkpoint"].startswith(EXPERT) or row["checkpoint"] == EXPERT + row["task"]


def group_of(row: Row) -> str:
    """The name under which a row is drawn: the experts are one together."""
    return EXPERTS if row["checkpoint"].startswith(EXPERT) else str(row["checkpoint"])


def drawn_checkpoints(document: Mapping[str, Any], rows: Sequence[Row], most: int = MOST) -> list[str]:
    """The experts, the best others by their mean, and the base, in this order: that of the plots of scores."""
    there = list(dict.fromkeys(group_of(row) for row in rows))
    means = {one["checkpoint"]: one for one in document["averages"] if one["corruption"] is None}
    errors = any(row["lower_is_better"] for row in rows)

    def rank(name: str) -> tuple[bool, float]:
        own = means.get(name, {})
        value = own.get("normalised") if errors or own.get("normalised") is not None else own.get("average")
        return name not in (BASE, EXPERTS), -(value if value is not None else float("-inf"))

    best = sorted(there, key=rank)[:most]
    others = [name for name in best if name not in (BASE, EXPERTS)]
    return [*(name for name in (EXPERTS,) if name in best), *others, *(name for name in (BASE,) if name in best)]
