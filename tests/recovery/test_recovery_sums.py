"""The one pass over all inputs against naive float64, and how fine the numbers of each type are."""

import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from taskmerge.checkpoint.dtypes import CODES
from taskmerge.errors import BadFile, NotEnough
from taskmerge.experts.inputs import InputOptions, resolve
from taskmerge.experts.rows import Rows
from taskmerge.merging.costs import Budget
from taskmerge.recovery import measure as measuring
from taskmerge.recovery.measure import Candidates, Grain, TensorMoments, measure

State = dict[str, Tensor]
SHAPES = {"h.0.fc.weight": (5, 4), "wte.weight": (7, 3), "norm": (6,), "scale": ()}
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def states(seed: int) -> tuple[State, State, dict[str, State]]:
    """A merged checkpoint, a base and three experts, of types that differ."""
    drawn = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}
    kinds = [TYPES[(seed + place) % 4] for place in range(4)]
    steps = [
        {name: (one + 0.1 * torch.randn(one.shape, generator=drawn)).to(kind) for name, one in base.items()}
        for kind in kinds
    ]
    steps[1]["norm"] = base["norm"].to(kinds[1])
    return steps[0], base, dict(zip("abc", steps[1:], strict=True))


def measured(
    folder: Path, seed: int, *, based: bool, workers: int = 1, limit: int | None = None
) -> list[TensorMoments]:
    merged, base, experts = states(seed)
    for name, state in {"base": base, "m": merged, **experts}.items():
        save_file(state, folder / f"{name}.safetensors")
    with ExitStack() as stack:
        places = {name: str(folder / f"{name}.safetensors") for name in ("a", "b", "c", "m")}
        inputs = resolve(places, InputOptions(base=folder / "base.safetensors" if based else None))
        stack.callback(inputs.close)
        of = Candidates(inputs.experts[3], inputs.experts[:3], inputs.base)
        return measure(of, SHAPES, Budget(workers, limit, 0, 0, 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1, 3, 64]))
def test_sums_are_their_definition(tmp_path_factory: pytest.TempPathFactory, seed: int, based: bool, step: int) -> None:
    merged, base, experts = states(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "CHUNK", step)
        patch.setattr(measuring, "PIECE", 2 * step)
        found = measured(tmp_path_factory.mktemp("measure"), seed, based=based)
    assert [one.name for one in found] == sorted(SHAPES)
    for one in found:
        rows = [state[one.name].double().flatten() for state in experts.values()]
        origin = base[one.name].double().flatten() if based else torch.stack(rows).mean(dim=0)
        weights = merged[one.name].double().flatten()
        every = torch.stack([origin, *(row - origin for row in rows), weights - origin])
        assert torch.allclose(one.moments.gram, every @ every.T, rtol=1e-5, atol=1e-6), one.name
        gaps = torch.tensor([gap(value, merged[one.name].dtype) for value in weights.tolist()]).double()
        assert one.moments.rounding == pytest.approx(float(gaps.square().sum() / 12), rel=1e-9)
        assert one.moments.numel == len(weights)


def gap(value: float, dtype: torch.dtype) -> float:
    """The distance to the next number of a type, by its definition: eps 2^e."""
    info = torch.finfo(dtype)
    exponent = math.frexp(max(abs(value), info.smallest_normal))[1] - 1
    return float(info.eps * 2.0**exponent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_unit_in_the_last_place_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(500, generator=generator) * 10.0 ** torch.randint(-9, 3, (500,), generator=generator)
    values = drawn.abs().clamp(max=400).to(dtype)
    bits = torch.uint8 if values.itemsize == 1 else torch.int16 if values.itemsize == 2 else torch.int32
    above = (values.view(bits) + 1).view(dtype).double()
    assert torch.equal(Grain(CODES[dtype]).unit(-values.float()).double(), above - values.double())


def test_sums_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK", 4)
    monkeypatch.setattr(measuring, "PIECE", 8)
    one, other = (measured(tmp_path, 5, based=True, workers=workers) for workers in (1, 4))
    assert all(torch.equal(a.moments.gram, b.moments.gram) for a, b in zip(one, other, strict=True))
    assert [a.moments.narrow for a in one] == [b.moments.narrow for b in other]


def test_slices_of_all_inputs_are_held_and_no_tensor_of_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK", 5)
    monkeypatch.setattr(measuring, "PIECE", 10)
    sizes, read = [], Rows.of

    def spied(self: Rows, unit: object, start: int = 0, count: int | None = None) -> object:
        sizes.append(count)
        return read(self, unit, start, count)  # type: ignore[arg-type]

    monkeypatch.setattr(Rows, "of", spied)
    measured(tmp_path, 3, based=True)
    assert max(sizes) == 5  # type: ignore[type-var]


def test_a_limit_that_is_too_small_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(NotEnough, match="comparing these needs"):
        measured(tmp_path, 3, based=True, limit=10)


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = states(3)
    broken[2]["b"]["norm"][2] = math.nan
    monkeypatch.setitem(globals(), "states", lambda seed: broken)
    with pytest.raises(BadFile, match=r"b\.safetensors: `norm`: the tensor holds NaN"):
        measured(tmp_path, 3, based=True)
