"""Gradients of shards that go backward side by side, added up in the shards' order as they come: one set is held.

Every shard would otherwise hold gradients of the whole encoder until its backward pass ends.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Self

from torch import Tensor, nn


class Summing:
    """Sums of the gradients that flow into some parameters while it is open, by name, in `sums`.

    A parameter's gradient of one shard waits for those of the shards before, so that the sums do not depend on who is
    faster; shards side by side come to a parameter at about the same time. What flows on is zeros without memory.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.parameters = list(parameters.values())
        self._names = list(parameters)
        self._locks = {name: threading.Lock() for name in parameters}
        self._next = dict.fromkeys(parameters, 0)
        self._early: dict[str, dict[int, Tensor]] = {name: {} for name in parameters}
        self._turns: dict[int, int] = {}
        self._over: set[int] = set()

    def __enter__(self) -> Self:
        pairs = zip(self._names, self.parameters, strict=True)
        self._hooks = [parameter.register_hook(partial(self._given, name)) for name, parameter in pairs]  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def turn_of(self, shard: int) -> Iterator[None]:
        """While this thread goes backward through the shard of this number, counted from 0."""
        thread = threading.get_ident()
        self._turns[thread] = shard
        try:
            yield
        finally:
            del self._turns[thread]
        self._over.add(shard)
        for name in self._names:
            with self._locks[name]:
                self._add_up(name)

    def _given(self, name: str, grad: Tensor) -> Tensor:
        """Takes one shard's gradient of a parameter."""
        turn = self._turns.get(threading.get_ident())
        if turn is None:  # accelerators go backward in a thread of their own, one shard at a time
            (turn,) = self._turns.values()
        with self._locks[name]:
            self._early[name][turn] = grad
            self._add_up(name)
        return grad.new_zeros(()).expand_as(grad)

    def _add_up(self, name: str) -> None:
        """Adds what is there up to the first shard that is still to come; shards that are over may have nothing."""
        early, turn = self._early[name], self._next[name]
        while turn in early or turn in self._over:
            grad = early.pop(turn, None)
            if grad is not None and name in self.sums:
                self.sums[name].add_(grad)
            elif grad is not None:
                self.sums[name] = grad.clone()  # it may be another parameter's too
            turn += 1
        self._next[name] = turn
