"""How an update is dealt over processes: every shard once, in runs of equal length, whole tasks where that is so."""

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmerge.adaptation.components import Effective
from taskmerge.adaptation.spread import dealt, kept_by_all, summed
from taskmerge.adaptation.tasks import SHARD, Features, TaskSide
from taskmerge.processes import ALONE, Group


@dataclass(frozen=True)
class Side:
    """As much of a task as dealing looks at."""

    name: str
    frozen: Features | None = None

    def shards(self, batch: Tensor, processes: int = 1) -> list[Tensor]:
        return list(TaskSide.shards(self, batch, processes))


def batches(sizes: list[int]) -> list[tuple[Side, Tensor]]:
    return [(Side(f"task {number}"), torch.arange(size) + 1000 * number) for number, size in enumerate(sizes)]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), processes=st.integers(1, 7))
def test_every_item_goes_to_one_process_in_order(sizes: list[int], processes: int) -> None:
    every = batches(sizes)
    shares = [dealt(Group(rank=rank, size=processes), every) for rank in range(processes)]
    items = [place for own in shares for share in own for shard in share.shards for place in shard.tolist()]
    assert items == [place for _, batch in every for place in batch.tolist()]
    counts = [sum(len(share.shards) for share in own) for own in shares]
    assert max(counts) - min(counts) <= 1


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), processes=st.integers(1, 7))
def test_a_task_is_divided_where_several_have_shards_of_it(sizes: list[int], processes: int) -> None:
    every = batches(sizes)
    shares = [dealt(Group(rank=rank, size=processes), every) for rank in range(processes)]
    for of_task in zip(*shares, strict=True):
        holders = sum(bool(share.shards) for share in of_task)
        assert {share.divided for share in of_task} == {holders > 1}
        assert len({share.items for share in of_task}) == 1


@given(size=st.integers(1, 40), processes=st.integers(1, 7))
def test_one_task_alone_keeps_all_processes_busy(size: int, processes: int) -> None:
    shares = [dealt(Group(rank=rank, size=processes), batches([size]))[0] for rank in range(processes)]
    busy = sum(bool(share.shards) for share in shares)
    assert busy == min(processes, len(list(Side("").shards(torch.arange(size), processes))))
    assert 2 * busy >= min(processes, size)


def test_one_process_has_the_shards_that_it_always_had() -> None:
    (share,) = dealt(ALONE, batches([20]))
    assert [len(shard) for shard in share.shards] == [SHARD, SHARD, 4]
    assert not share.divided
    whole = TaskSide.shards(Side("", Features(torch.zeros(20, 1))), torch.arange(20), 4)
    assert [len(shard) for shard in whole] == [20]


def test_alone_nothing_is_exchanged() -> None:
    pulled = Effective(torch.ones(2, 3), {"a": torch.ones(4)})
    own = {"task 0": {"head/weight": torch.ones(2)}}
    assert summed(ALONE, pulled, own, []) == (pulled, own)
    assert kept_by_all(ALONE, dealt(ALONE, batches([20])), [7]) == [7]
