"""Batches: every item once a pass, whatever else is going on; no labels; nothing to replay."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.data.batches import Batch, batch_of, places, task_order
from taskmerge.data.items import Items
from taskmerge.errors import UsageError

SIZES = st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))
NAMES = st.text("abcdé", max_size=3)


@given(sizes=SIZES, seed=st.integers(0, 2**40), task=NAMES, passes=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_item_comes_once_a_pass(sizes: tuple[int, int], seed: int, task: str, passes: int) -> None:
    count, batch_size = sizes
    updates = -(-passes * count // batch_size)
    batches = [places(seed, task, update, count=count, batch_size=batch_size) for update in range(updates)]
    assert all(len(batch) == batch_size and batch.dtype == torch.int64 for batch in batches)
    stream = torch.cat(batches).tolist()
    for start in range(0, passes * count, count):
        assert sorted(stream[start : start + count]) == list(range(count))


@given(sizes=SIZES, seed=st.integers(0, 9), updates=st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_a_batch_depends_on_seed_task_and_update_alone(sizes: tuple[int, int], seed: int, updates: list[int]) -> None:
    """Not on earlier calls, other tasks, the global generator or threads."""
    count, batch_size = sizes
    wanted = [places(seed, "cars", update, count=count, batch_size=batch_size).tolist() for update in range(6)]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for update in [*updates, *updates]:
            places(seed, "dogs", update, count=count, batch_size=batch_size)
            batch = places(seed, "cars", update, count=count, batch_size=batch_size)
            assert batch.tolist() == wanted[update]
            batch.zero_()  # the caller's own
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_tasks_and_passes_have_orders_of_their_own() -> None:
    orders = [
        places(seed, task, update, count=50, batch_size=50).tolist()
        for seed in (0, 1)
        for task in ("cars", "dogs")
        for update in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == len(orders)
    # written down, so that another machine or version draws the same
    assert places(0, "cars", 3, count=10, batch_size=4).tolist() == WRITTEN_DOWN


WRITTEN_DOWN = [7, 3, 8, 2]


def test_first_places_are_uniform() -> None:
    drawn = Counter(int(places(seed, "cars", 0, count=5, batch_size=1)) for seed in range(1000))
    assert all(150 < drawn[place] < 250 for place in range(5))


@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_batch_that_the_task_cannot_give_is_refused(batch_size: int) -> None:
    with pytest.raises(UsageError, match="from the 5 items of task `cars`") as caught:
        places(0, "cars", 0, count=5, batch_size=batch_size)
    assert (caught.value.where, caught.value.hint) == ("--batch-size", "give 1 to 5")


@given(seed=st.integers(0, 99), update=st.integers(0, 99), tasks=st.lists(NAMES, unique=True, max_size=6))
@settings(deadline=None)
def test_the_order_of_two_tasks_does_not_depend_on_others(seed: int, update: int, tasks: list[str]) -> None:
    order = task_order(seed, update, tasks)
    assert sorted(order) == sorted(tasks)
    assert task_order(seed, update, reversed(tasks)) == order
    assert task_order(seed, update, tasks[1:]) == tuple(task for task in order if task not in tasks[:1])


def test_orders_of_tasks_change_with_update_and_seed() -> None:
    tasks = ("cars", "dogs", "signs")
    assert len({task_order(0, update, tasks) for update in range(60)}) == 6
    assert len({task_order(seed, 0, tasks) for seed in range(60)}) == 6


def test_a_batch_is_rows_of_the_items_and_has_no_labels() -> None:
    ids = torch.arange(12, dtype=torch.int32).reshape(4, 3)
    items = Items({"input_ids": ids, "attention_mask": ids % 2}, "", torch.arange(4))
    batch = batch_of(items, "cars", torch.tensor([2, 0]))
    assert batch.task == "cars"
    assert batch.places.tolist() == [2, 0]
    assert batch.inputs["input_ids"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert [field.name for field in fields(Batch)] == ["task", "inputs", "places"]
