"""Sweeps of the embedded example cut short: a few tasks, a few items, and the encoder looked into."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import taskmerge
from taskmerge.numerics.rank import Rank
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows.sweeps.encoder import Encoder
from taskmerge.workflows.sweeps.opening import Opened, open_sweep
from taskmerge.workflows.sweeps.request import SweepRequest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
TASKS = ("colours", "digits", "shapes")
RANKS = tuple(map(Rank.parse, ("0.05", "0.3", "1.0")))


def request(folder: Path, *kinds: str, tasks: Sequence[str] = TASKS, **more: Any) -> SweepRequest:
    """A short sweep over some tasks of the example."""
    given = {"ranks": RANKS, "coefficients": (0.5, 1.5), "limit": 5, "threads": 1, "device": "cpu", **more}
    return SweepRequest(
        suite=load_suite(EXAMPLE / "suite.yaml"), kinds=kinds, folder=folder, tasks=tuple(tasks),  # type: ignore[arg-type]
        **given,
    )  # fmt: skip


@contextmanager
def opened(asked: SweepRequest) -> Iterator[Opened]:
    """What the sweep works with."""
    with ExitStack() as stack:
        yield open_sweep(asked, stack)


def states(tasks: Sequence[str] = TASKS) -> dict[str, dict[str, Tensor]]:
    """The experts' tensors by task."""
    return {task: load_file(EXAMPLE / f"{task}.safetensors") for task in tasks}


def base() -> dict[str, Tensor]:
    """The base's tensors."""
    return load_file(EXAMPLE / "base.safetensors")


def merged(tasks: Sequence[str], method: str, **options: Any) -> dict[str, Tensor]:
    """What the engine makes of some experts."""
    notes: list[str] = []
    result = taskmerge.merge(
        states(tasks), base=base(), method=method, digests=False, threads=1, note=notes.append, **options
    )
    return dict(result)


def held(encoder: Encoder) -> dict[str, Tensor]:
    """The units in the encoder, flat, by the names that they have in files."""
    return {job.name: encoder.get(job).clone() for job in encoder.jobs}


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], last_bits: int = 2) -> None:
    """Every tensor is what a merge in half precision wrote, but for rounding in its last bits."""
    assert found
    for name, values in found.items():
        other = wanted[name].float().reshape(-1)
        room = last_bits * (2.0**-10 * other.abs() + 2.0**-24)
        assert bool(((values - other).abs() <= room).all()), name


def exactly(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether every tensor is bit for bit what a file holds."""
    return all(torch.equal(values, wanted[name].float().reshape(-1)) for name, values in found.items())


def shorter(asked: SweepRequest, **changes: Any) -> SweepRequest:
    """The same with other options."""
    return replace(asked, **changes)
