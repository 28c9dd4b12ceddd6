"""The one pass over the weights against naive float64, over inputs that are odd in every way."""

import math
import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from taskmerge.diagnosis import measure as measuring
from taskmerge.diagnosis.kinship import Kinship
from taskmerge.diagnosis.measure import Measured, measure
from taskmerge.errors import NotEnough
from taskmerge.experts.inputs import InputOptions, Inputs, resolve
from taskmerge.experts.rows import Rows
from taskmerge.merging.costs import Budget

State = dict[str, Tensor]
SHAPES = {
    "h.0.fc.weight": (5, 4),
    "h.1.fc.weight": (4, 5),
    "wte.weight": (7, 3),
    "norm": (6,),
    "scale": (),
    "none": (0, 3),
}
MATRICES = ("h.0.fc.weight", "h.1.fc.weight", "wte.weight")
TYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


def states(seed: int) -> tuple[State, dict[str, State]]:
    """A base and three experts: some lack tensors, have further ones, other shapes, other types, values that are none,
    or what others have."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts = {}
    for task in "abc":
        dtype = chance.choice(TYPES)
        state = {
            name: (one + 0.1 * chance.choice((0, 1, 1)) * torch.randn(one.shape, generator=generator)).to(dtype)
            for name, one in base.items()
        }
        for name in chance.sample(sorted(SHAPES), chance.choice((0, 0, 1, 2))):
            del state[name]
        if chance.random() < 0.3:
            state["head.weight"] = torch.randn(chance.choice((2, 3)), 4, generator=generator)
        if chance.random() < 0.3:
            state["wte.weight"] = torch.randn(8, 3, generator=generator)
        if chance.random() < 0.3:
            value = chance.choice((math.nan, math.inf, -math.inf))
            state["norm"] = torch.randn(6, generator=generator).masked_fill(
                torch.arange(6) < chance.randint(1, 6), value
            )
        state["steps"] = torch.tensor(chance.randrange(9))
        experts[task] = state
    if chance.random() < 0.3:
        experts["c"] = {name: one.clone() for name, one in experts["a"].items()}
        fewer = chance.choice(("", "a", "c"))  # one of the two may lack what the other has
        if fewer:
            experts[fewer].pop(chance.choice(sorted(experts[fewer].keys() - {"steps", "none"})))
    if chance.random() < 0.3:
        experts["b"] = {name: one.clone() for name, one in base.items()}
    return base, experts


def written(folder: Path, base: Mapping[str, Tensor], experts: Mapping[str, State]) -> dict[str, Path]:
    for name, state in {"base": base, **experts}.items():
        save_file({key: one.contiguous() for key, one in state.items()}, folder / f"{name}.safetensors")
    return {task: folder / f"{task}.safetensors" for task in experts}


def measured(paths: Mapping[str, Path], base: Path | None, workers: int = 1, limit: int | None = None) -> Measured:
    with ExitStack() as stack:
        inputs = resolve({task: str(path) for task, path in paths.items()}, InputOptions(base=base))
        stack.callback(inputs.close)
        return measure(inputs, names_of(inputs), Budget(workers, limit, 0, 0, 0))


def names_of(inputs: Inputs) -> set[str]:
    return {name for expert in inputs.experts for name in expert.specs}


def clean(one: Tensor) -> Tensor:
    return one.double().nan_to_num(0, 0, 0)


def naive(base: State | None, experts: Mapping[str, State]) -> dict[str, object]:
    """Relative norms, cosines and shares by loops over whole tensors."""
    found: dict[str, object] = {}
    floats = {
        task: {k: v for k, v in one.items() if v.is_floating_point() and v.numel()} for task, one in experts.items()
    }
    for task, state in floats.items():
        if base is None:
            break
        common = [name for name in state if name in base and base[name].shape == state[name].shape]
        theta = torch.cat([torch.zeros(0).double(), *(clean(base[name]).flatten() for name in common)])
        own = torch.cat([torch.zeros(0).double(), *(clean(state[name]).flatten() for name in common)])
        found[task, "relative"] = float((own - theta).norm() / theta.norm()) if common else None
        found[task, "cosine"] = float(own @ theta / own.norm() / theta.norm()) if common and own.norm() else None
        angles = [cosine(clean(base[name]), clean(state[name])) for name in common if name in MATRICES]
        found[task, "median"] = sorted(angles)[(len(angles) - 1) // 2] if angles else None
        changed = held = 0
        for name in common:
            rounded = (
                base[name].to(state[name].dtype) if state[name].dtype in (torch.half, torch.bfloat16) else base[name]
            )
            changed += int((clean(state[name]) != clean(rounded)).sum())
            held += state[name].numel()
        found[task, "changed"] = changed / held if held else None
    for s in floats:
        for t in floats:
            if s < t:
                found[s, t] = floats[s].keys() == floats[t].keys() and all(
                    floats[s][name].shape == floats[t][name].shape
                    and torch.equal(clean(floats[s][name]), clean(floats[t][name]))
                    for name in floats[s]
                )
    for task, state in floats.items():
        found[task, "faults"] = {
            k: int((~v.isfinite()).sum()) for k, v in sorted(state.items()) if not v.isfinite().all()
        }
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(), b.flatten()
    return float(a @ b / a.norm() / b.norm())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1, 3, 7, 64]))
def test_every_number_is_its_definition(
    tmp_path_factory: pytest.TempPathFactory, seed: int, based: bool, step: int
) -> None:
    folder = tmp_path_factory.mktemp("measure")
    base, experts = states(seed)
    paths = written(folder, base, experts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "CHUNK", step)
        patch.setattr(measuring, "PIECE", 2 * step)
        found = measured(paths, folder / "base.safetensors" if based else None)
    kinship = Kinship(found, frozenset())
    wanted = naive(base if based else None, experts)
    for task, one in kinship.closeness.items():
        held = found.held[found.tasks.index(task)].total()
        changed = sum(found.changed[found.tasks.index(task)].values()) / held if held else None
        for name, value in (
            ("relative", one.relative_norm), ("cosine", one.cosine), ("median", one.median), ("changed", changed)
        ):  # fmt: skip
            assert value == (None if wanted[task, name] is None else pytest.approx(wanted[task, name], abs=2e-6)), name
    for pair in kinship.pairs:
        assert pair.equal == wanted[pair.a, pair.b]
    for task in found.tasks:
        assert found.faults.get(task, {}) == wanted[task, "faults"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_numbers_do_not_depend_on_workers_or_names(
    tmp_path_factory: pytest.TempPathFactory, seed: int, based: bool
) -> None:
    folder = tmp_path_factory.mktemp("measure")
    base, experts = states(seed)
    paths = written(folder, base, experts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "CHUNK", 4)
        patch.setattr(measuring, "PIECE", 8)
        found = [measured(paths, folder / "base.safetensors" if based else None, workers) for workers in (1, 4)]
    for name in ("inner", "squares", "cosines", "lengths"):
        one, other = (getattr(result, name) for result in found)
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9)), name
    assert found[0].changed == found[1].changed
    assert found[0].faults == found[1].faults


def test_slices_of_all_inputs_are_held_and_no_tensor_of_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = states(3)
    paths = written(tmp_path, base, experts)
    monkeypatch.setattr(measuring, "CHUNK", 5)
    monkeypatch.setattr(measuring, "PIECE", 10)
    sizes, read = [], Rows.of

    def spied(self: Rows, unit: object, start: int = 0, count: int | None = None) -> object:
        sizes.append(count)
        return read(self, unit, start, count)  # type: ignore[arg-type]

    monkeypatch.setattr(Rows, "of", spied)
    measured(paths, tmp_path / "base.safetensors")
    assert max(sizes) == 5  # type: ignore[type-var]


def test_a_limit_that_is_too_small_is_told_before_anything_is_read(tmp_path: Path) -> None:
    base, experts = states(3)
    paths = written(tmp_path, base, experts)
    with pytest.raises(NotEnough, match="comparing these needs"):
        measured(paths, tmp_path / "base.safetensors", limit=10)


def test_what_a_coarser_type_takes_from_the_base_is_no_change(tmp_path: Path) -> None:
    """A base in float32 and its copy in bfloat16: the task vector is rounding, all of it."""
    base = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}
    experts = {"a": {name: one.bfloat16() for name, one in base.items()}}
    experts["b"] = {name: one + 0.2 for name, one in experts["a"].items()}
    kinship = Kinship(measured(written(tmp_path, base, experts), tmp_path / "base.safetensors"), frozenset())
    copy, moved = kinship.closeness["a"], kinship.closeness["b"]
    assert set(copy.changed.values()) == {0}
    assert copy.rounding == pytest.approx(1)
    assert copy.relative_norm == pytest.approx(2**-9, rel=0.5)
    assert set(moved.changed.values()) == {1}
    assert moved.rounding is not None
    assert moved.rounding < 0.01
