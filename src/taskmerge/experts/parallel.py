"""Several tensors at once: threads that keep within a memory limit, results in the order of the jobs."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from taskmerge.numerics.lapack import settle_thread
from taskmerge.stops import held


class Sized(Protocol):
    """A job that says how many bytes it holds at its peak."""

    @property
    def memory(self) -> int: ...


TICK = 0.05
"""Seconds after which a Ctrl-C is heard at the latest, but for what the workers are at."""
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
    waiting = dict(enumerate(jobs))
    flying: dict[Future[R], tuple[int, int]] = {}
    ready: dict[int, Future[R]] = {}
    due = 0
    with held() as hold, ThreadPoolExecutor(workers, "merge", settle_thread) as pool:
        try:
            while waiting or flying:
                while len(flying) < workers:
                    room = in_flight - sum(memory for _, memory in flying.values())
                    index = next((i for i, job in waiting.items() if not flying or job.memory <= room), None)
                    if index is None:
                        break
                    job = waiting.pop(index)
                    flying[pool.submit(work, job)] = (index, job.memory)
                finished, _ = wait(flying, TICK, FIRST_COMPLETED)
                hold.hear()
                for future in sorted(finished, key=lambda future: flying[future][0]):
                    ready[flying.pop(future)[0]] = future
                while due in ready:
                    yield ready.pop(due).result()
                    due += 1
        except GeneratorExit:
            raise
        except BaseException:
            stop.set()
            raise
