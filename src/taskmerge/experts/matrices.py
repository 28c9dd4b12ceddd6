"""The task matrices of a tensor, ready to be factored: the same for a merge and for the adaptation that it repeats."""

from collections.abc import Sequence

from torch import Tensor

from taskmerge.experts.rows import Rows
from taskmerge.experts.tensors import Unit
from taskmerge.numerics.spectral import Factors, TaskMatrices
from taskmerge.specs.merge import Svd


def task_matrices(
    rows: Rows, unit: Unit, piece: Tensor, start: int = 0, *, svd: Svd = "exact", chained: bool = False
) -> TaskMatrices:
    """The task matrices of a piece [T, *piece] of the portion that begins at element `start` of a unit.

    Their factorisations are those of any other run over the same rows, if both run `single_threaded`. `chained`: other
    methods act on the rows first, so that what files know of them does not count.
    """
    given = None if chained else given_factors(rows, unit, start)
    return TaskMatrices(piece.reshape(len(piece), *unit.matrix), svd=svd, given=given)


def given_factors(rows: Rows, unit: Unit, start: int) -> Sequence[Factors] | None:
    """The triplets that factor files hold, where they are of the very matrices that are factored."""
    if rows.recentred or unit.pieces > 1 or len(unit.parts) > 1:
        return None
    triplets = [expert.factors(unit.name, unit.expert_at(start)) for expert in rows.experts]
    given = [factors for factors in triplets if factors is not None]
    return given if len(given) == len(triplets) else None
