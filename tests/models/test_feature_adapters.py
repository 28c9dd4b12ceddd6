"""Adapters of features against their formulas in float64, and their files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import saved
from safetensors.torch import load_file
from torch import Tensor

from taskmerge.errors import BadFile, BadNumber, BadOutput, Mismatch, TaskmergeError
from taskmerge.models.adapters import (
    Adapted,
    Adapter,
    ProbAdapter,
    SurgeryAdapter,
    adapter_tensors,
    prob_surgery,
    read_adapter,
    surgery,
    write_adapter,
)
from taskmerge.seeds import uniform_at

SIZES = st.integers(1, 9)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def surgery_drawn(rank: int, width: int, seed: int = 0) -> SurgeryAdapter:
    return SurgeryAdapter(drawn(seed, rank, width), drawn(seed + 1, width, rank))


def prob_drawn(hidden: int, width: int, seed: int = 0) -> ProbAdapter:
    outward = (drawn(seed + place, width, hidden) for place in (1, 2))
    return ProbAdapter(drawn(seed, hidden, width), *outward)


def times(weight: Tensor, vector: list[float]) -> list[float]:
    """A matrix times a vector, with loops."""
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in weight.double().tolist()]


def relu(vector: list[float]) -> list[float]:
    return [max(value, 0.0) for value in vector]


@settings(deadline=None, max_examples=25)
@given(count=SIZES, rank=SIZES, width=SIZES, seed=st.integers(0, 99))
def test_surgery_is_its_formula(count: int, rank: int, width: int, seed: int) -> None:
    adapter, features = surgery_drawn(rank, width, seed), drawn(seed + 7, count, width)
    for z, found in zip(features.double().tolist(), adapter(features), strict=True):
        bias = times(adapter.up, relu(times(adapter.down, z)))
        expected = torch.tensor([a - b for a, b in zip(z, bias, strict=True)], dtype=torch.float64)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(count=SIZES, hidden=SIZES, width=SIZES, seed=st.integers(0, 99))
def test_prob_surgery_is_its_formula(count: int, hidden: int, width: int, seed: int) -> None:
    adapter, features, noise = prob_drawn(hidden, width, seed), drawn(seed + 7, count, width), drawn(9, count, width)
    adapter.log_variance.div_(10)
    plain, noisy = adapter(features), adapter(features, noise)
    for place, z in enumerate(features.double().tolist()):
        h = relu(times(adapter.encode, z))
        mean = torch.tensor(times(adapter.mean, h), dtype=torch.float64)
        deviation = torch.tensor(times(adapter.log_variance, h), dtype=torch.float64).div(2).exp()
        expected = features[place].double() - mean
        torch.testing.assert_close(plain[place].double(), expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(noisy[place].double(), expected - noise[place] * deviation, atol=2e-5, rtol=1e-4)
        found_mean, found_log = (moment[place].double() for moment in adapter.moments(features))
        torch.testing.assert_close(found_mean, mean, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found_log, 2 * deviation.log(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [surgery_drawn(3, 5), prob_drawn(4, 5)])
def test_maps_are_adapted_at_every_place(adapter: Adapter) -> None:
    maps = drawn(5, 2, 5, 3, 4)
    found = adapter(maps)
    assert found.shape == maps.shape
    for row in range(3):
        for column in range(4):
            torch.testing.assert_close(found[:, :, row, column], adapter(maps[:, :, row, column]))


def test_a_head_stands_behind_its_adapter() -> None:
    adapter = surgery_drawn(2, 5)
    adapted, features = Adapted(adapter, lambda features: 3 * features), drawn(1, 4, 5)
    assert torch.equal(adapted(features), 3 * adapter(features))


def test_what_is_fresh_changes_nothing_and_is_a_function_of_seed_and_task() -> None:
    features = drawn(0, 4, 6)
    for make in (surgery, prob_surgery):
        fresh, again = make(6, "cars", seed=1), make(6, "cars", seed=1)
        assert torch.equal(fresh(features), features)
        first, *zeros = adapter_tensors(fresh).values()
        assert not any(bool(tensor.any()) for tensor in zeros)
        assert torch.equal(first, next(iter(adapter_tensors(again).values())))
        for other in (make(6, "dogs", seed=1), make(6, "cars", seed=2)):
            assert not torch.equal(first, next(iter(adapter_tensors(other).values())))
        assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert adapter_tensors(surgery(6, "cars")).keys() == {"down", "up"}
    assert [tuple(one.shape) for one in adapter_tensors(surgery(6, "cars")).values()] == [(16, 6), (6, 16)]
    assert [tuple(one.shape) for one in adapter_tensors(prob_surgery(6, "cars")).values()] == [
        (128, 6), (6, 128), (6, 128),
    ]  # fmt: skip


def test_the_start_is_kaimings_uniform_of_the_named_numbers() -> None:
    uniform = uniform_at(3, "cars", "adapter", 0, 64 * 25).double().reshape(64, 25)
    bound = (6 / ((1 + 5) * 25)) ** 0.5  # gain² = 2 / (1 + a²), a² = 5; bound = gain · √(3 / fan in)
    expected = (2 * uniform - 1) * bound
    torch.testing.assert_close(surgery(25, "cars", rank=64, seed=3).down.double(), expected, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(prob_surgery(25, "cars", hidden=64, seed=3).encode.double(), expected, atol=1e-8, rtol=0)
    assert float(expected.abs().max()) <= bound


def test_adapters_learn_once_they_are_asked_to() -> None:
    adapter = surgery(5, "cars", rank=3).requires_grad_(True)
    adapter(drawn(0, 4, 5)).square().sum().backward()
    assert adapter.up.grad is not None
    assert bool(adapter.up.grad.any())


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [surgery_drawn(3, 5), prob_drawn(4, 5)])
def test_an_adapter_comes_back(tmp_path: Path, adapter: Adapter) -> None:
    file, features = tmp_path / "adapters" / "cars.safetensors", drawn(0, 4, 5)
    write_adapter(file, adapter)
    first = file.read_bytes()
    found = read_adapter(file, 5)
    assert type(found) is type(adapter)
    assert torch.equal(found(features), adapter(features))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    with pytest.raises(BadOutput, match="exists already"):
        write_adapter(file, found)
    write_adapter(file, found, overwrite=True)
    assert file.read_bytes() == first


def test_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    adapter = surgery_drawn(3, 5)
    file = saved(tmp_path / "x.safetensors", {name: one.half() for name, one in adapter_tensors(adapter).items()})
    assert torch.equal(read_adapter(file, 5).state_dict()["down"], adapter.down.half().float())


def refused(path: Path, kind: type[TaskmergeError], says: str, changes: dict[str, Any], whole: Adapter) -> None:
    tensors = {**adapter_tensors(whole), **changes}
    file = saved(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(kind, match=says) as caught:
        read_adapter(file, 5)
    assert str(file) in str(caught.value.where)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"down": torch.zeros(3, 6)}, r"\[3, 6\] for features of 5 numbers, expected \[3, 5\]"),
        ({"up": torch.zeros(6, 3)}, r"\[6, 3\] for features of 5 numbers, expected \[5, 3\]"),
        ({"up": torch.zeros(5, 2)}, r"\[5, 2\] for features of 5 numbers, expected \[5, 3\]"),
        ({"down": torch.zeros(())}, r"\[\] for features"),
        ({"down": torch.zeros(3, 5, 1)}, r"\[3, 5, 1\] for features"),
        ({"up": torch.zeros(5, 3, dtype=torch.int8)}, "not of a floating-point type"),
        ({"up": None}, "has `down`, `up` or `encode`, `mean`, `log_variance`; this file has down"),
        ({"weight": torch.zeros(1)}, "this file has down, up, weight"),
    ],
)
def test_an_adapter_that_does_not_fit_is_a_mismatch(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    refused(tmp_path / "x.safetensors", Mismatch, says, changes, surgery_drawn(3, 5))


def test_parts_of_a_prob_adapter_must_agree(tmp_path: Path) -> None:
    for name in ("mean", "log_variance"):
        changes = {name: torch.zeros(5, 3)}
        refused(tmp_path / "x.safetensors", Mismatch, r"expected \[5, 4\]", changes, prob_drawn(4, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_are_neither_read_nor_written(tmp_path: Path, value: float) -> None:
    bad = torch.zeros(5, 3)
    bad[1, 1] = value
    refused(tmp_path / "x.safetensors", BadFile, "holds NaN or infinity", {"up": bad}, surgery_drawn(3, 5))
    with pytest.raises(BadNumber, match="`up`"):
        write_adapter(tmp_path / "y.safetensors", SurgeryAdapter(torch.zeros(3, 5), bad))
    assert not (tmp_path / "y.safetensors").exists()


def test_what_is_no_file_is_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x" * 20)
    for name in ("x.safetensors", "none.safetensors"):
        with pytest.raises(BadFile):
            read_adapter(tmp_path / name, 5)


def test_the_file_holds_the_named_tensors(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x.safetensors", prob_drawn(4, 5))
    assert set(load_file(tmp_path / "x.safetensors")) == {"encode", "mean", "log_variance"}
