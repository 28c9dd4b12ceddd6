"""What adding each singular component of a task's matrix does to the losses of a merge of the other tasks."""

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmerge.errors import UsageError, listed
from taskmerge.experts.matrices import task_matrices
from taskmerge.merging.plan import TensorJob
from taskmerge.methods.task_arithmetic import usual_coefficient
from taskmerge.numerics.lapack import single_threaded
from taskmerge.numerics.spectral import Factors
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.gradients import gradients
from taskmerge.workflows.sweeps.judge import Judge, mean_and_error
from taskmerge.workflows.sweeps.opening import Opened, needs
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.running import Measure, Planned, entries


@dataclass(frozen=True)
class ComponentsSweep:
    """ΔL_j = L_j(θ_m + λ s_i u_i v_iᵀ) - L_j(θ_m), θ_m = θ₀ + λ Σ of the OTHER tasks' whole vectors, for every task j.

    Exact, and beside it the first-order proxy λ s_i u_iᵀ G_j v_i from one backward pass a loss (Lee et al., AdaRank).
    """

    opened: Opened
    kind: str = "components"

    @property
    def options(self) -> dict[str, Any]:
        return {"labels": self.opened.asked.labels, "coefficient": self.coefficient}

    @property
    def coefficient(self) -> float:
        """λ: that of task arithmetic."""
        return usual_coefficient(len(self.opened.encoder.tasks))

    @property
    def judge(self) -> Judge:
        if self.opened.losses is None:
            raise ValueError("nobody asked for losses")
        return self.opened.losses

    def points(self) -> list[Planned]:
        needs(self.opened, self.kind, base=True, tasks=2)
        items = self.judge.items(self.opened.names)
        return [
            Planned({"task": name, "matrix": job.name, "component": index}, items)
            for name in self.opened.names
            for job in self._chosen()
            for index in indices(min(job.unit.matrix))
        ]

    def _chosen(self) -> list[TensorJob]:
        """The matrices that were named, else the first of attention and the first of the MLP in the middle block."""
        whole = [job for job in self.opened.encoder.jobs if job.factored and self._placed(job)]
        known = sorted(whole, key=lambda job: job.name)
        globs = self.opened.asked.matrices
        if globs:
            found = [job for job in known if any(fnmatch.fnmatch(job.name, glob) for glob in globs)]
            if not found:
                hint = f"known: {listed(job.name for job in known)}"
                raise UsageError(f"{listed(globs)} names no matrix", where="--sweep-matrix", hint=hint)
            return found
        middle = [job for job in known if (at := job.unit.position) is not None and at[0] == at[1] // 2] or known
        roles = {job.unit.role: job for job in reversed(middle)}
        return sorted(roles.values(), key=lambda job: job.name)

    def _placed(self, job: TensorJob) -> bool:
        """Whether a unit is one matrix, all of it in the encoder."""
        held = sum(own.stop - own.start for _, own, _ in self.opened.encoder.spots[job.name])
        return job.unit.matrices == 1 and held == job.numel

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        for name in self.opened.names:
            others = _Others(self, name)
            for job in self._chosen():
                for index in indices(min(job.unit.matrix)):
                    point = {"task": name, "matrix": job.name, "component": index}
                    yield point, partial(others.adding, job, index)

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        labels = {name: one.source for name, one in self.judge.tasks.items()}
        every = [{**point, **result} for point, result in entries(self, found)]
        return {"labels": labels, "coefficient": self.coefficient, "points": every}


def indices(full: int) -> list[int]:
    """The components that are added, counted from 1: 1, 2, 3, 4, 6, 8, 12, 16, … up to the last."""
    found = [1, *(size for power in range(1, 20) for size in (2**power, 3 * 2 ** (power - 1)))]
    return sorted({*(index for index in found if index <= full), full})


@dataclass
class _Others:
    """The merge of all tasks but one, put into the encoder when it is first asked about."""

    sweep: ComponentsSweep
    task: str
    _ready: bool = field(init=False, default=False)
    _losses: dict[str, Tensor] = field(init=False, default_factory=dict)
    _gradients: dict[str, Mapping[str, Tensor] | None] = field(init=False, default_factory=dict)
    _factors: dict[str, tuple[Factors, float]] = field(init=False, default_factory=dict)

    def adding(self, job: TensorJob, index: int) -> dict[str, Any]:
        """What adding one component does: its value, its share of the energy, and the change of every task's loss."""
        self._prepare()
        factors, energy = self._factors[job.name]
        if index > len(factors.s):
            return {"value": 0.0, "share": 0.0, "changes": []}
        encoder, names = self.sweep.opened.encoder, self.sweep.opened.names
        u, s, v = factors.u[:, index - 1], float(factors.s[index - 1]), factors.vt[index - 1]
        step = self.sweep.coefficient * s * torch.outer(u, v)
        before = encoder.get(job)
        encoder.put(job, before + step.reshape(-1), exact=True)
        after = {name: self.sweep.judge.losses(self._label, name) for name in names}
        encoder.put(job, before, exact=True)
        changes = [self._change(name, job, after[name], step) for name in names]
        return {"value": s, "share": s * s / energy if energy else 0.0, "changes": changes}

    def _change(self, name: str, job: TensorJob, after: Tensor, step: Tensor) -> dict[str, Any]:
        """The mean change of one task's loss over items, with the standard error of paired differences."""
        found = mean_and_error(after - self._losses[name])
        own = self._gradients[name]
        proxy = math.nan if own is None else float((own[job.name].to(step) * step).sum())
        known = proxy if math.isfinite(proxy) else None
        return {"task": name, "change": found["mean"], "se": found["se"], "proxy": known}

    @property
    def _label(self) -> str:
        return f"all but {self.task}"

    def _prepare(self) -> None:
        """The merge of the others, its losses and their gradients, and the task's own components."""
        if self._ready:
            return
        opened, jobs = self.sweep.opened, self.sweep._chosen()
        others = [name for name in opened.encoder.tasks if name != self.task]
        opened.encoder.summed(others, self.sweep.coefficient, exact=True)
        for name in opened.names:
            self._losses[name] = self.sweep.judge.losses(self._label, name)
            self._gradients[name] = gradients(opened, self.sweep.judge, name, jobs)
        self._factors = {job.name: self._factored(job) for job in jobs}
        self._ready = True

    def _factored(self, job: TensorJob) -> tuple[Factors, float]:
        """The components of the task's own vector, and its energy."""
        rows = self.sweep.opened.encoder.rows("delta", [self.task])
        with single_threaded():
            _, vectors = rows.of(job.unit, tallied=False)
            (piece,) = job.unit.cut(vectors)
            (factors,) = task_matrices(rows, job.unit, piece).top(min(job.unit.matrix))
            energy = float(vectors.double().square().sum())
        return Factors(*(part.clone() for part in factors)), energy
