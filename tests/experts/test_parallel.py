"""Jobs on several threads: results in order, within memory, however jobs are handed over together."""

import threading
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.experts import parallel as module
from taskmerge.experts.parallel import SMALL, parallel


@dataclass(frozen=True)
class Job:
    number: int
    memory: int


class Watched:
    """Works on jobs, and keeps the most memory that was held at once by several of them."""

    def __init__(self, failing: Sequence[int] = ()) -> None:
        self.failing, self.done = frozenset(failing), list[int]()
        self._lock, self._held = threading.Lock(), list[int]()
        self.most = 0

    def __call__(self, job: Job) -> int:
        with self._lock:
            self._held.append(job.memory)
            self.most = max(self.most, sum(self._held) if len(self._held) > 1 else 0)
        try:
            if job.number in self.failing:
                raise ValueError(job.number)
            return job.number
        finally:
            with self._lock:
                self._held.remove(job.memory)
                self.done.append(job.number)


MEMORY = st.sampled_from([0, 1, 100, SMALL // 2, SMALL, SMALL + 1, 10 * SMALL])
JOBS = st.lists(MEMORY, max_size=60).map(lambda sizes: [Job(*each) for each in enumerate(sizes)])


def run(jobs: Sequence[Job], work: Watched, workers: int, in_flight: int) -> tuple[list[int], threading.Event]:
    stop = threading.Event()
    return list(parallel(jobs, work, workers=workers, in_flight=in_flight, stop=stop)), stop


@settings(max_examples=60, deadline=None)
@given(jobs=JOBS, workers=st.integers(1, 4), in_flight=st.sampled_from([0, SMALL, 3 * SMALL, 100 * SMALL]))
def test_results_come_in_order_and_memory_is_kept(jobs: list[Job], workers: int, in_flight: int) -> None:
    work = Watched()
    results, stop = run(jobs, work, workers, in_flight)
    assert results == [job.number for job in jobs]
    assert sorted(work.done) == results
    assert work.most <= in_flight
    assert not stop.is_set()


@settings(max_examples=40, deadline=None)
@given(jobs=JOBS.filter(bool), workers=st.integers(1, 4), data=st.data())
def test_the_first_failure_in_order_is_raised_and_the_others_stop(
    jobs: list[Job], workers: int, data: st.DataObject
) -> None:
    failing = data.draw(st.lists(st.integers(0, len(jobs) - 1), min_size=1, max_size=3))
    stop, found = threading.Event(), list[int]()
    with pytest.raises(ValueError, match=f"^{min(failing)}$"):
        found.extend(parallel(jobs, Watched(failing), workers=workers, in_flight=100 * SMALL, stop=stop))
    assert stop.is_set()
    assert found == list(range(len(found)))


def test_many_small_jobs_are_handed_over_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[None] = []
    monkeypatch.setattr(module, "wait", lambda *given: waits.append(None) or wait(*given))
    jobs = [Job(number, 100) for number in range(4_000)]
    assert run(jobs, Watched(), 2, 10**9)[0] == list(range(4_000))
    assert len(waits) < 200


def test_large_jobs_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)

    def work(job: Job) -> int:
        both.wait()
        return job.number

    jobs = [Job(number, 2 * SMALL) for number in range(8)]
    assert list(parallel(jobs, work, workers=2, in_flight=10**9, stop=threading.Event())) == list(range(8))
