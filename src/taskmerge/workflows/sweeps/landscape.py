"""The loss on the plane of the first two principal components of experts, average and base (E13)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from taskmerge.checkpoint.disk import explained
from taskmerge.errors import UsageError
from taskmerge.merging.plan import TensorJob
from taskmerge.numerics.inner import gram
from taskmerge.numerics.plane import Plane, plane_of
from taskmerge.workflows.sweeps.averages import Means
from taskmerge.workflows.sweeps.encoder import Encoder
from taskmerge.workflows.sweeps.grid import GridPoint, methods, usual, walk
from taskmerge.workflows.sweeps.judge import mean_and_error
from taskmerge.workflows.sweeps.opening import Opened
from taskmerge.workflows.sweeps.points import Point, Points
from taskmerge.workflows.sweeps.request import RANK
from taskmerge.workflows.sweeps.running import Measure, Planned, entries
from taskmerge.workflows.sweeps.scratch import keep, path_of

SIDE, MARGIN = 9, 0.25
"""Points along each side of the plane's grid, and what it reaches beyond the models, as a share of their spread."""
AROUND, NEAR = 5, 0.5
"""Points along each side of an expert's neighbourhood, which reaches so far of its way to the average."""
AVERAGE, BASE = "average", "base"


@dataclass(frozen=True)
class LandscapeSweep:
    """Losses at the models themselves, on a grid of the plane, around each expert parallel to it (its own task), and
    along the ways of CART and truncated task arithmetic over rank and coefficient, which leave the plane."""

    opened: Opened
    kind: str = "landscape"

    @property
    def options(self) -> dict[str, Any]:
        asked = self.opened.asked
        return {
            "labels": asked.labels, "side": SIDE, "margin": MARGIN, "around": AROUND, "near": NEAR,
            "rank": str(RANK), "ranks": [str(rank) for rank in asked.ranks], "coefficients": list(asked.coefficients),
        }  # fmt: skip

    def points(self) -> list[Planned]:
        names, judge = self.opened.names, self.opened.losses
        if judge is None:
            raise ValueError("nobody asked for losses")
        if len(names) + (self.opened.encoder.base is not None) < 3:
            what = "a plane needs three models that are not on a line: three experts, or two and the base"
            raise UsageError(what, where="--sweep", hint="give more experts, or the base, or leave `landscape` out")
        every = judge.items(names)
        shared: list[dict[str, Any]] = [{"what": "model", "model": model} for model in self._models()]
        shared += [{"what": "grid", "column": x, "row": y} for y in range(SIDE) for x in range(SIDE)]
        around = [
            Planned({"what": "near", "task": name, "column": x, "row": y}, judge.items([name]))
            for name in names for y in range(AROUND) for x in range(AROUND)
        ]  # fmt: skip
        ways = [{"what": "way", **point.key} for point in self._ways()]
        return [*(Planned(point, every) for point in shared), *around, *(Planned(point, every) for point in ways)]

    def _models(self) -> list[str]:
        """The models that span the plane: the experts in the engine's order, the average, and the base."""
        encoder = self.opened.encoder
        return [*encoder.tasks, AVERAGE, *([BASE] if encoder.base is not None else [])]

    def _ways(self) -> list[GridPoint]:
        encoder, asked = self.opened.encoder, self.opened.asked
        found: dict[GridPoint, None] = {}
        for method in methods(encoder):
            own = usual(method, len(encoder.tasks))
            found |= dict.fromkeys(GridPoint(method, rank, own) for rank in asked.ranks)
            found |= dict.fromkeys(GridPoint(method, RANK, coefficient) for coefficient in asked.coefficients)
        return list(found)

    def walk(self, scratch: Path) -> Iterator[tuple[Point, Measure]]:
        atlas = atlas_of(self.opened.encoder, scratch / "plane", self._models())
        yield from self._in_plane(atlas)
        for point, form in walk(self.opened.encoder, self._ways(), scratch / "factors"):

            def measure(form: Any = form) -> dict[str, Any]:
                found = atlas.located(lambda also: form(exact=True, also=also))
                return {**found, "losses": self._losses(self.opened.names)}

            yield {"what": "way", **point.key}, measure

    def _in_plane(self, atlas: "Atlas") -> Iterator[tuple[Point, Measure]]:
        for place, model in enumerate(self._models()):
            yield {"what": "model", "model": model}, partial(self._at_model, atlas, place)
        columns, rows = atlas.axes(SIDE, MARGIN)
        for row, y in enumerate(rows):
            for column, x in enumerate(columns):
                point = {"what": "grid", "column": column, "row": row}
                yield point, partial(self._at, atlas, x, y)
        for name in self.opened.names:
            steps = torch.linspace(-1, 1, AROUND, dtype=torch.float64).tolist()
            for row, up in enumerate(steps):
                for column, right in enumerate(steps):
                    point = {"what": "near", "task": name, "column": column, "row": row}
                    yield point, partial(self._near, atlas, name, right, up)

    def _at_model(self, atlas: "Atlas", place: int) -> dict[str, Any]:
        model = self._models()[place]
        encoder = self.opened.encoder
        if model == BASE:
            encoder.original()
        else:
            encoder.average(None if model == AVERAGE else [model])
        x, y = atlas.plane.coordinates[place].tolist()
        return {"x": x, "y": y, "distance": float(atlas.plane.off[place]), "losses": self._losses(self.opened.names)}

    def _at(self, atlas: "Atlas", x: float, y: float) -> dict[str, Any]:
        atlas.put(x, y)
        return {"x": x, "y": y, "losses": self._losses(self.opened.names)}

    def _near(self, atlas: "Atlas", name: str, right: float, up: float) -> dict[str, Any]:
        place = self._models().index(name)
        reach = NEAR * atlas.from_average(place)
        x, y = right * reach, up * reach
        atlas.put(x, y, around=name)
        return {"x": x, "y": y, "losses": self._losses([name])}

    def _losses(self, names: Sequence[str]) -> list[dict[str, Any]]:
        judge = self.opened.losses
        if judge is None:
            raise ValueError("nobody asked for losses")
        return [{"task": name, **mean_and_error(judge.losses("a point of the plane", name))} for name in names]

    def document(self, found: Points, means: Means) -> dict[str, Any]:
        parts: dict[str, list[dict[str, Any]]] = {"model": [], "grid": [], "near": [], "way": []}
        for point, result in entries(self, found):
            what = {key: value for key, value in point.items() if key != "what"}
            parts[point["what"]].append({**what, **result})
        models = parts["model"]
        spread = sum(one["x"] ** 2 + one["y"] ** 2 for one in models)
        off = sum(one["distance"] ** 2 for one in models)
        shares = [sum(one[axis] ** 2 for one in models) / (spread + off) for axis in ("x", "y")]
        judged = {} if self.opened.losses is None else self.opened.losses.tasks
        labels = {name: one.source for name, one in judged.items()}
        return {
            "labels": labels, "variance_shares": shares, "side": SIDE, "around": AROUND, "models": models,
            "grid": parts["grid"], "near": parts["near"], "ways": parts["way"],
        }  # fmt: skip


# --- the plane in weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Atlas:
    """The plane of some models, and its centre and axes as files of `folder`, a unit each."""

    encoder: Encoder
    folder: Path
    plane: Plane
    models: Sequence[str]

    def axes(self, side: int, margin: float) -> list[list[float]]:
        """The coordinates of a grid over all models, along each axis."""
        low, high = self.plane.coordinates.amin(0), self.plane.coordinates.amax(0)
        reach = margin * (high - low)
        return [
            torch.linspace(float(a), float(b), side, dtype=torch.float64).tolist()
            for a, b in zip(low - reach, high + reach, strict=True)
        ]

    def from_average(self, place: int) -> float:
        """How far a model is from the average."""
        mean = self.models.index(AVERAGE)
        between = self.plane.coordinates[place] - self.plane.coordinates[mean]
        off = float(self.plane.off[place]) ** 2
        return math.sqrt(float(between.square().sum()) + off)

    def put(self, x: float, y: float, *, around: str | None = None) -> None:
        """Puts the plane's centre (or the expert `around`) and x e₁ + y e₂ into the encoder."""
        rows = self.encoder.rows("weight", [around] if around is not None else None)

        def work(job: TensorJob) -> None:
            centre, first, second = self._read(job)
            if around is not None:
                _, (centre,) = rows.of(job.unit, tallied=False)
            self.encoder.put(job, centre + x * first + y * second, exact=True)

        self.encoder.each(work, rows)

    def located(self, form: Callable[[Callable[[TensorJob, Tensor], None]], None]) -> dict[str, float]:
        """Coordinates of the model that `form` puts into the encoder, and its distance from the plane."""
        parts: dict[str, Tensor] = {}

        def also(job: TensorJob, values: Tensor) -> None:
            centre, first, second = self._read(job)
            parts[job.name] = gram(torch.stack([values - centre, first, second]))[0]

        form(also)
        square, x, y = sum_of([parts[name] for name in sorted(parts)]).tolist()
        return {"x": x, "y": y, "distance": max(square - x * x - y * y, 0.0) ** 0.5}

    def _read(self, job: TensorJob) -> tuple[Tensor, Tensor, Tensor]:
        with safe_open(path_of(self.folder, job), framework="pt", device=str(self.encoder.device)) as file:
            return file.get_tensor("centre"), file.get_tensor("first"), file.get_tensor("second")


def atlas_of(encoder: Encoder, folder: Path, models: Sequence[str]) -> Atlas:
    """Finds the plane of the experts, their average, and the base if it is among `models`, and writes it down.

    Reads every expert twice: once for inner products, summed in float64, once for the axes. UsageError where the models
    lie on a line.
    """
    based = BASE in models
    rows = encoder.rows("delta" if based else "weight")
    parts: dict[str, Tensor] = {}

    def differences(job: TensorJob, start: int, count: int) -> tuple[Tensor, Tensor]:
        """The average, and the models about it, [M, count]."""
        origin, read = rows.of(job.unit, start, count, tallied=False)
        centre = read.double().mean(0)
        zero = torch.zeros(1 + based, count, dtype=torch.float64, device=read.device)
        zero[1:] = -centre
        return origin + centre, torch.cat([read.double() - centre, zero])

    def measure(job: TensorJob) -> None:
        parts[job.name] = sum_of([gram(differences(job, start, count)[1]) for start, count in _slices(job)])

    def write(job: TensorJob) -> None:
        centres, axes = [], []
        for start, count in _slices(job):
            average, about = differences(job, start, count)
            centres.append((average + about.mean(0)).to(encoder.dtype).cpu())
            axes.append((plane.combination.to(about.device) @ about).to(encoder.dtype).cpu())
        first, second = torch.cat(axes, dim=1)
        tensors = {"centre": torch.cat(centres), "first": first.contiguous(), "second": second.contiguous()}
        keep(folder, job, tensors)

    encoder.each(measure, rows)
    found = plane_of(sum_of([parts[name] for name in sorted(parts)]))
    if found is None:
        raise UsageError("experts, average and base lie on one line: there is no plane", where="--sweep")
    plane = found
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    encoder.each(write, rows)
    return Atlas(encoder, folder, plane, models)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum, in the order given."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


def _slices(job: TensorJob) -> Iterator[tuple[int, int]]:
    """A unit in slices, whatever its method reads."""
    size = 1 << 18
    for start in range(0, max(job.numel, 1), size):
        yield start, min(size, job.numel - start)
