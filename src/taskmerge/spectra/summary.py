"""Means over matrices: of all, of attention and of MLPs, and block by block. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from taskmerge.experts.classes import block_of, depths, in_sequence
from taskmerge.spectra.between import Beside
from taskmerge.spectra.entries import Counts, add
from taskmerge.spectra.intruders import FAR
from taskmerge.spectra.matrices import Measured
from taskmerge.spectra.scan import Found
from taskmerge.types import Space

By = Literal["all", "role", "depth"]
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Group:
    """Some matrices about one origin: by task [T], and between tasks [T, T] (None where there is nothing between).

    `name` is all, a role, or the place of a block in its `tower`.
    Ranks are means of shares of the full rank, `energy` and `nuclear` [T, R], overlaps and interferences means over
    matrices, each beside the mean of its chance levels; `exponent` is the median. Over all entries together: `norm`,
    `zeros`, `cosine`, `conflict`. `singular` is that of all matrices over the values of all. `intruders` [T] is how
    many of the leading directions, `directions` [T], are none of the base's.
    """

    space: Space
    by: By
    name: str
    tower: str | None
    matrices: int
    parameters: int
    norm: Tensor
    energy_rank: Tensor
    entropy_rank: Tensor
    stable_rank: Tensor
    energy: Tensor
    nuclear: Tensor
    exponent: Tensor
    zeros: Tensor | None
    intruders: Tensor | None
    directions: Tensor | None
    cosine: Beside | None
    conflict: Beside | None
    left: Beside | None
    right: Beside | None
    interference: Beside | None
    singular: Beside | None
    alignment: Beside | None


def groups(found: Sequence[Found]) -> list[Group]:
    """All groups of the matrices, about every origin, in the order of the model."""
    spaces = list(dict.fromkeys(space for one in found for space in one.spaces))
    return [_group(space, *chosen) for space in spaces for chosen in _members(found)]


def _members(found: Sequence[Found]) -> Iterator[tuple[By, str, str | None, list[Found]]]:
    """(by what, name, tower of a block, the matrices): all, then by role, then by depth."""
    yield "all", "all", None, list(found)
    for role in ("attention", "mlp", OTHER):
        members = [one for one in found if (one.place.role or OTHER) == role]
        if members:
            yield "role", role, None, members
    blocks: dict[tuple[str, int], list[Found]] = {}
    for one, place in zip(found, _depths(found), strict=True):
        if place is not None:
            blocks.setdefault(place, []).append(one)
    for (tower, depth), members in sorted(blocks.items()):
        yield "depth", str(depth), tower, members


def _depths(found: Sequence[Found]) -> list[tuple[str, int] | None]:
    """The tower and the place in it of every matrix's block; stages, such as ResNets' `layer1`, are one tower."""
    sequences = in_sequence(depths(one.place.name for one in found))
    blocks = [block_of(one.place.name) for one in found]
    return [
        None if block is None else (block.tower.rstrip("0123456789"), sequences[block.tower][0] + block.index)
        for block in blocks
    ]


def _group(space: Space, by: By, name: str, tower: str | None, members: Sequence[Found]) -> Group:
    every = [one.spaces[space] for one in members]
    counts = add(one.counts for one in every)
    sides = torch.tensor([min(one.place.shape) for one in members], dtype=torch.float64)[:, None]

    def shares(of: Callable[[Measured], Tensor]) -> Tensor:
        return (torch.stack([of(one) for one in every]) / sides).mean(0)

    def mean(of: Callable[[Measured], Tensor]) -> Tensor:
        return torch.stack([of(one) for one in every]).nanmean(0)

    near = [one.nearest for one in members if one.nearest is not None] if space == "delta" else []
    cosine = _cosine(counts, every)
    return Group(
        space, by, name, tower, len(members), counts.numel,
        counts.norms,
        shares(lambda one: one.spectra.energy_rank),
        shares(lambda one: one.spectra.entropy_rank),
        shares(lambda one: one.spectra.stable_rank),
        mean(lambda one: one.spectra.energy),
        mean(lambda one: one.spectra.nuclear),
        torch.stack([one.spectra.exponent for one in every]).nanmedian(0).values,
        counts.zeros if space == "delta" else None,
        _summed(near, lambda cosines: int((cosines < FAR).sum())),
        _summed(near, len),
        cosine,
        counts.conflicts(cosine.chance) if cosine is not None else None,
        _mean(one.overlaps.left for one in every if one.overlaps),
        _mean(one.overlaps.right for one in every if one.overlaps),
        _mean(one.overlaps.interference for one in every if one.overlaps),
        _singular(every),
        _mean(one.alignment.share for one in every if one.alignment),
    )  # fmt: skip


def _cosine(counts: Counts, every: Sequence[Measured]) -> Beside | None:
    """The cosines of all entries together; chance is the mean over matrices, weighed as the products that it is of."""
    if any(one.cosine is None for one in every):
        return None
    norms = counts.norms
    both = norms[:, None] * norms
    inner = torch.zeros_like(both)
    for one in every:
        if one.cosine is not None:
            own = one.counts.norms
            inner += one.cosine.chance.nan_to_num(0.0) * own[:, None] * own
    return Beside(
        torch.where(both > 0, counts.inner / both, torch.nan).clamp(-1, 1),
        torch.where(both > 0, inner / both, torch.nan).clamp(-1, 1),
    )


def _mean(every: Iterable[Beside]) -> Beside | None:
    known = list(every)
    if not known:
        return None
    values, levels = (torch.stack(part) for part in zip(*((one.value, one.chance) for one in known), strict=True))
    return Beside(values.nanmean(0), levels.nanmean(0))


def _singular(every: Sequence[Measured]) -> Beside | None:
    """Of all matrices together: weighed by the sums of the values that each is measured by."""
    known = [one for one in every if one.overlaps is not None]
    if not known:
        return None
    weights = torch.stack([one.overlaps.total for one in known if one.overlaps])
    parts = [one.overlaps.singular for one in known if one.overlaps]
    value, level = (
        (torch.stack(part).nan_to_num(0.0) * weights).sum() / weights.sum()
        for part in zip(*((part.value, part.chance) for part in parts), strict=True)
    )
    return Beside(value, level)


def _summed(near: Sequence[Sequence[Tensor]], of: Callable[[Tensor], int]) -> Tensor | None:
    """The sum over matrices by task."""
    if not near:
        return None
    return torch.tensor([sum(map(of, column)) for column in zip(*near, strict=True)], dtype=torch.float64)
