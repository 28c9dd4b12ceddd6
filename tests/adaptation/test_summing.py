"""Gradients of shards that go backward at once: summed in the shards' order, whoever comes first."""

import threading
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from taskmerge.adaptation.summing import Summing

SHARDS = 3


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(40, generator=generator)) for name in ("first", "second", "third")}


def loss_of(given: dict[str, nn.Parameter], shard: int) -> Tensor:
    """Of the second shard, `third` has no part in it; the sums of floats depend on their order."""
    sizes = torch.linspace(-3, 3, 40).mul(1.0 + 2 * shard).exp2()
    used = [value for name, value in given.items() if (name, shard) != ("third", 1)]
    return torch.stack([(value * sizes).sin().sum() for value in used]).sum()


def expected(given: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for shard in range(SHARDS):
        grads = torch.autograd.grad(loss_of(given, shard), list(given.values()), allow_unused=True)
        for name, grad in zip(given, grads, strict=True):
            if grad is not None:
                total[name] = total[name] + grad if name in total else grad
    return total


def equal(sums: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return sums.keys() == others.keys() and all(torch.equal(sums[name], others[name]) for name in sums)


@pytest.mark.parametrize("order", list(permutations(range(SHARDS))))
def test_the_order_of_shards_counts_not_that_of_arrival(order: tuple[int, ...]) -> None:
    given = parameters()
    with Summing(given) as summing:
        for shard in order:
            with summing.turn_of(shard):
                torch.autograd.grad(loss_of(given, shard), summing.parameters, allow_unused=True)
    assert equal(summing.sums, expected(given))


def test_threads_change_no_bit() -> None:
    given = parameters()
    for _ in range(20):
        with Summing(given) as summing:

            def work(shard: int, summing: Summing = summing) -> None:
                with summing.turn_of(shard):
                    torch.autograd.grad(loss_of(given, shard), summing.parameters, allow_unused=True)

            threads = [threading.Thread(target=work, args=(shard,)) for shard in reversed(range(SHARDS))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert equal(summing.sums, expected(given))


def test_what_flows_on_takes_no_memory_and_parameters_are_left_as_they_were() -> None:
    given = parameters()
    with Summing(given) as summing, summing.turn_of(0):
        grads = torch.autograd.grad(loss_of(given, 0), summing.parameters)
    assert all(not grad.any() and grad.untyped_storage().nbytes() == 4 for grad in grads)
    assert all(value.grad is None for value in given.values())
    (after,) = torch.autograd.grad(loss_of(given, 0), [given["first"]])
    assert torch.equal(after, summing.sums["first"])  # the hooks are gone


def test_two_parameters_that_get_the_same_tensor_are_summed_apart() -> None:
    one, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    with Summing({"one": one, "other": other}) as summing:
        for shard in range(2):
            with summing.turn_of(shard):
                torch.autograd.grad((one + other).sum() + (other.sum() if shard else 0), summing.parameters)
    assert torch.equal(summing.sums["one"], torch.full((4,), 2.0))
    assert torch.equal(summing.sums["other"], torch.full((4,), 3.0))
