"""The one model of a sweep: an encoder into whose live tensors merged units are written, and their experts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmerge.checkpoint.dtypes import DTYPES
from taskmerge.errors import located
from taskmerge.experts.parallel import parallel
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.sources import Source
from taskmerge.merging.plan import TensorJob
from taskmerge.numerics.centre import mean
from taskmerge.numerics.lapack import single_threaded
from taskmerge.specs.merge import Svd
from taskmerge.types import Space

Spots = tuple[tuple[str, slice, torch.dtype], ...]
"""Where parts of a unit go: a tensor of the module, the unit's elements that it takes, the type of a merged file."""


@dataclass(frozen=True)
class Encoder:
    """Experts as `merge` reads them, and the encoder that they are merged into.

    `jobs` are the units that the encoder has a place for, the heaviest first; `spots` says by unit where it is, `slots`
    are the module's live tensors by name. Merged values pass through the type that `merge` would write.
    """

    jobs: Sequence[TensorJob]
    spots: Mapping[str, Spots]
    slots: Mapping[str, Tensor]
    experts: Sequence[Source]
    base: Source | None
    dtype: torch.dtype
    device: torch.device
    workers: int
    in_flight: int
    svd: Svd = "exact"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the experts, in canonical order."""
        return tuple(expert.task for expert in self.experts)

    def rows(self, space: Space, tasks: Sequence[str] | None = None) -> Rows:
        """The rows of these tasks' experts (None: of all), evenly weighed."""
        chosen = [expert for expert in self.experts if tasks is None or expert.task in tasks]
        return Rows(self.base, chosen, space, even(chosen), self.dtype, self.device)

    def each(self, work: Callable[[TensorJob], None], rows: Rows, *, factoring: bool = False) -> None:
        """The work over all units, several at once; `rows` are what it reads."""

        @torch.no_grad()
        def located_work(job: TensorJob) -> None:
            with located(f"`{job.name}`"):
                work(job)

        with single_threaded(factoring=factoring):
            for _ in parallel(self.jobs, located_work, workers=self.workers, in_flight=self.in_flight, stop=rows.stop):
                pass

    def put(self, job: TensorJob, values: Tensor, start: int = 0, *, exact: bool = False) -> None:
        """Writes elements of a unit, from `start` on, into the encoder; `exact`: without the rounding of a file."""
        for own, target, code in self.targets(job, start, len(values)):
            target.copy_(values[own] if exact else values[own].to(code))

    def targets(self, job: TensorJob, start: int, count: int) -> Iterator[tuple[slice, Tensor, torch.dtype]]:
        """(which of `count` elements of a unit from `start` on, where in the encoder they go, the type of a file)."""
        for name, own, code in self.spots[job.name]:
            low, high = max(start, own.start), min(start + count, own.stop)
            if low < high:
                target = self.slots[name].reshape(-1)[low - own.start : high - own.start]
                yield slice(low - start, high - start), target, code

    def get(self, job: TensorJob) -> Tensor:
        """A unit as it is in the encoder, flat; all of it has a place there."""
        spots = sorted(self.spots[job.name], key=lambda spot: spot[1].start)
        return torch.cat([self.slots[name].reshape(-1) for name, _, _ in spots])

    # --- models that are no truncation ------------------------------------------------------------------------

    def average(self, tasks: Sequence[str] | None = None) -> None:
        """Puts the average of these tasks' experts into the encoder; of one, the expert itself."""
        rows = self.rows("weight", tasks)

        def work(job: TensorJob) -> None:
            for start, count in job.slices():
                _, weights = rows.of(job.unit, start, count, tallied=False)
                self.put(job, mean(weights, rows.weights), start)

        self.each(work, rows)

    def original(self) -> None:
        """Puts the base into the encoder, which must be there."""
        rows = self.rows("delta", self.tasks[:1])

        def work(job: TensorJob) -> None:
            for start, count in job.slices():
                self.put(job, rows.base_of(job.unit, start, count), start)

        self.each(work, rows)

    def summed(self, tasks: Sequence[str], coefficient: float, *, exact: bool = False) -> None:
        """Puts the base and the scaled sum of these tasks' vectors into the encoder."""
        rows = self.rows("delta", tasks)

        def work(job: TensorJob) -> None:
            for start, count in job.slices():
                origin, vectors = rows.of(job.unit, start, count, tallied=False)
                self.put(job, origin + coefficient * vectors.sum(0), start, exact=exact)

        self.each(work, rows)


def spots_in(jobs: Sequence[TensorJob], places: Mapping[str, str]) -> dict[str, Spots]:
    """Where units go, by name; `places` are the module's names of tensors. Units without a place are left out."""
    found: dict[str, Spots] = {}
    for job in jobs:
        spots = tuple(_spots(job, places))
        if job.action == "merge" and spots:
            found[job.name] = spots
    return found


def _spots(job: TensorJob, places: Mapping[str, str]) -> Iterator[tuple[str, slice, torch.dtype]]:
    offset = 0
    for part, output in zip(job.unit.parts, job.outputs, strict=True):
        if part.name in places:
            yield places[part.name], slice(offset, offset + part.numel), DTYPES[output.dtype]
        offset += part.numel
