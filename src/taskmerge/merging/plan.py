"""What a merge will do, as values: every tensor accounted for, the costs known before a byte of weight is read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from taskmerge.checkpoint.canonical import OutputSpec
from taskmerge.experts.compare import BASE
from taskmerge.experts.sources import Source
from taskmerge.experts.tensors import Unit
from taskmerge.methods.contract import Reads
from taskmerge.types import TensorClass

CHUNK = 1 << 18  # elements of one slice: larger ones leave the caches, smaller ones pay for Python
Treatment = Literal["method", "elsewhere", "origin"]


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor, or one q, k, v trio that is merged as one matrix, and what happens to it.

    `memory` is what it holds at its peak, in bytes. `keeper` is whose tensor is kept as it is: `base`, or a task.
    """

    unit: Unit
    outputs: tuple[OutputSpec, ...]
    action: Literal["merge", "buffer", "copy", "keep"]
    treatment: Treatment = "origin"
    reads: Reads = "elements"
    memory: int = 0
    keeper: str | None = None

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def numel(self) -> int:
        return self.unit.numel

    def holder(self, base: Source | None, experts: Sequence[Source]) -> Source | None:
        """The input that a tensor is copied from."""
        if self.keeper in (None, BASE) and base is not None:
            return base
        return next((expert for expert in experts if expert.task == self.keeper), None)

    @property
    def factored(self) -> bool:
        """Whether its matrices are factored."""
        return self.treatment == "method" and self.reads == "matrix"

    def slices(self) -> Iterator[tuple[int, int]]:
        """(start, count) of what is handled at a time: slices where every element is merged by itself, else portions.

        An empty tensor is one empty slice.
        """
        if self.reads != "elements":
            yield from self.unit.portions()
            return
        for start in range(0, max(self.numel, 1), CHUNK):
            yield start, min(CHUNK, self.numel - start)


@dataclass(frozen=True, slots=True)
class Costs:
    """What the work takes: bytes read and written, bytes that jobs may hold at once, peak memory; and seconds, of a
    merge."""

    workers: int
    bytes_read: int
    bytes_written: int
    in_flight: int
    memory: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a merge will do: jobs in canonical order, what is left aside, notes, costs."""

    jobs: tuple[TensorJob, ...]
    tasks: tuple[str, ...]
    heads: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    costs: Costs

    def classes(self) -> list[tuple[TensorClass, int, int, str]]:
        """(class, tensors, parameters, treatment) for the table of --dry-run."""
        tensors: Counter[tuple[TensorClass, str]] = Counter()
        numbers: Counter[tuple[TensorClass, str]] = Counter()
        for job in self.jobs:
            key = (job.unit.kind, job.treatment if job.action == "merge" else job.action)
            tensors[key] += len(job.outputs)
            numbers[key] += job.numel
        return [(kind, count, numbers[kind, how], how) for (kind, how), count in sorted(tensors.items())]

    def outputs(self) -> list[OutputSpec]:
        return [output for job in self.jobs for output in job.outputs]
