"""Rows of any tensor without a plan: each space, against the subtraction by hand in float64."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import taskmerge
from taskmerge.experts.inputs import InputOptions, Inputs, resolve
from taskmerge.experts.rows import Rows, even
from taskmerge.experts.sources import Tally
from taskmerge.experts.tensors import Unit, units
from taskmerge.types import Space

SHAPES = {
    "h.0.attn.q_proj.weight": (6, 4),
    "h.0.attn.k_proj.weight": (6, 4),
    "h.0.attn.v_proj.weight": (6, 4),
    "b": (5,),
}
TASKS = ("a", "b", "c")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name in ("base", *TASKS):
        found[name] = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
        save_file(found[name], tmp_path / f"{name}.safetensors")
    return found


def opened(folder: Path, paths: list[Path]) -> Inputs:
    return resolve(paths, InputOptions(base=folder / "base.safetensors"))


def rows_of(inputs: Inputs, space: Space, tallies: Mapping[int, Tally] = MappingProxyType({})) -> Rows:
    return Rows(inputs.base, inputs.experts, space, even(inputs.experts), torch.float64, tallies=tallies)


def by_hand(models: dict[str, dict[str, Tensor]], unit: Unit, space: Space) -> tuple[Tensor, Tensor]:
    flat = {
        name: torch.cat([state[part.name].double().reshape(-1) for part in unit.parts])
        for name, state in models.items()
    }
    stack = torch.stack([flat[task] for task in TASKS])
    origin = {"weight": torch.zeros(()).double(), "delta": flat["base"], "centred": stack.mean(0)}[space]
    return origin, stack - (origin if space != "weight" else 0)


@pytest.mark.parametrize("space", ["weight", "delta", "centred"])
@pytest.mark.parametrize("kind", ["checkpoints", "vectors", "factors"])
def test_rows_are_the_differences_by_hand(
    models: dict[str, dict[str, Tensor]], tmp_path: Path, space: Space, kind: str
) -> None:
    """Whole and in pieces that cut tensors anywhere; task vectors and full-rank factors stand for their experts."""
    paths = [tmp_path / f"{task}.safetensors" for task in TASKS]
    if kind != "checkpoints":
        rank = {"rank": 4} if kind == "factors" else {}
        receipt = taskmerge.vectors(
            paths, base=tmp_path / "base.safetensors", output=tmp_path / "v", dtype="float64", **rank
        )  # fmt: skip
        paths = [Path(path) for path in receipt.paths]
    inputs = opened(tmp_path, paths)
    rows = rows_of(inputs, space)
    for unit in units(inputs.experts[0].specs, "fused"):
        origin, expected = by_hand(models, unit, space)
        for start, count in ((0, unit.numel), (2, unit.numel - 3), (unit.numel - 1, 1)):
            found_origin, found = rows.of(unit, start, count)
            torch.testing.assert_close(found, expected[:, start : start + count], rtol=1e-5, atol=1e-5)
            if space != "weight":
                torch.testing.assert_close(found_origin, origin[start : start + count], rtol=1e-6, atol=1e-6)
    inputs.close()


def test_digests_of_what_was_read_are_those_of_the_files(models: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    inputs = opened(tmp_path, [tmp_path / f"{task}.safetensors" for task in TASKS])
    tallies = {id(source): Tally() for source in inputs.sources}
    rows = rows_of(inputs, "delta", tallies=tallies)
    for unit in units(inputs.experts[0].specs):
        for start in range(0, unit.numel, 7):
            rows.of(unit, start, min(7, unit.numel - start))
    rows.account()
    for source in inputs.sources:
        digest, count = tallies[id(source)].finish(source.stored)
        assert (digest, count) == (taskmerge.inspect(source.where, digest=True).digest, len(SHAPES))
    inputs.close()
