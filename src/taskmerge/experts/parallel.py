"""Several tensors at once: threads that keep within a memory limit, results in the order of the jobs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from taskmerge.numerics.lapack import settle_thread
from taskmerge.stops import held


class Sized(Protocol):
    """A job that says how many bytes it holds at its peak."""

    @property
    def memory(self) -> int: ...


TICK = 0.05
"""Seconds after which a Ctrl-C is heard at the latest, but for what the workers are at."""
SMALL, SHARES = 4 << 20, 8
"""Bytes of jobs that are handed to a worker at once, and how many times at least each worker gets some."""
J = TypeVar("J", bound=Sized)
R = TypeVar("R")


class Stopped(Exception):
    """Another worker failed, or the user interrupted: give up at the next read."""


def parallel(
    jobs: Sequence[J], work: Callable[[J], R], *, workers: int, in_flight: int, stop: threading.Event
) -> Iterator[R]:
    """`work` over all jobs by so many workers, the jobs at work together within `in_flight` bytes (one always is).

    Where one fails, or the caller is interrupted, `stop` is set for the others to see.
    """
    waiting = dict(enumerate(_batches(jobs, len(jobs) // (SHARES * workers))))
    flying: dict[Future[list[R]], tuple[int, int]] = {}
    ready: dict[int, Future[list[R]]] = {}
    due = 0
    with held() as hold, ThreadPoolExecutor(workers, "merge", settle_thread) as pool:
        try:
            while waiting or flying:
                while len(flying) < workers:
                    room = in_flight - sum(memory for _, memory in flying.values())
                    index = next((i for i, batch in waiting.items() if not flying or batch.memory <= room), None)
                    if index is None:
                        break
                    batch = waiting.pop(index)
                    flying[pool.submit(_worked, work, batch)] = (index, batch.memory)
                finished, _ = wait(flying, TICK, FIRST_COMPLETED)
                hold.hear()
                for future in sorted(finished, key=lambda future: flying[future][0]):
                    ready[flying.pop(future)[0]] = future
                while due in ready:
                    yield from ready.pop(due).result()
                    due += 1
        except GeneratorExit:
            raise
        except BaseException:
            stop.set()
            raise


@dataclass(frozen=True, slots=True)
class _Batch(Generic[J]):
    """Jobs for one worker, one after the other; `memory` is what the largest holds."""

    jobs: Sequence[J]
    memory: int


def _batches(jobs: Sequence[J], most: int) -> Iterator[_Batch[J]]:
    """The jobs in their order, small ones up to `most` at a time: to hand one over takes longer than a norm's merge."""
    batch: list[J] = []
    together = 0
    for job in jobs:
        if batch and (together + job.memory > SMALL or len(batch) >= most):
            yield _Batch(batch, max(one.memory for one in batch))
            batch, together = [], 0
        batch.append(job)
        together += job.memory
    if batch:
        yield _Batch(batch, max(one.memory for one in batch))


def _worked(work: Callable[[J], R], batch: _Batch[J]) -> list[R]:
    return [work(job) for job in batch.jobs]
