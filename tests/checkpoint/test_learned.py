"""What was learnt, as files: the same contents give the same bytes and come back; anything else is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskmerge.checkpoint.learned import COEFFICIENTS, MASKS, learned_of, read_learned, write_learned
from taskmerge.errors import BadFile
from taskmerge.methods.composed import Learned

TASKS = ("a", "b é", "c")


def learned(tasks: tuple[str, ...] = TASKS, k: int = 11, seed: int = 0, matrices: int = 2) -> Learned:
    generator = torch.Generator().manual_seed(seed)
    coefficients = {name: torch.randn(len(tasks), generator=generator) for name in ("fc.weight", "fc.bias", "ε")}
    masks = {"fc.weight": torch.rand(matrices, len(tasks), k, generator=generator) < 0.5}
    return Learned(tasks, coefficients, masks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_learned(tmp_path, learned())
    return tmp_path


def spoilt(file: Path, change: Callable[[dict[str, Tensor]], Any] = lambda held: None, **record: Any) -> None:
    """The same file with other tensors, or another record; None takes a key of the record away."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    held = load_file(file)
    change(held)
    about = {**json.loads(metadata["taskmerge"]), **record}
    metadata["taskmerge"] = json.dumps({key: value for key, value in about.items() if value is not None})
    save_file(held, file, metadata)


# --- there and back --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text("abé_ ", min_size=1, max_size=5), min_size=1, max_size=4, unique=True),
    st.integers(0, 20),
    st.integers(0, 99),
    st.integers(0, 3),
)
def test_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[str], k: int, seed: int, matrices: int
) -> None:
    folder = tmp_path_factory.mktemp("learned")
    what = learned(tuple(sorted(tasks)), k, seed, matrices)
    write_learned(folder, what)
    again = read_learned(folder)
    assert again == what
    assert again.tasks == what.tasks
    assert all(torch.equal(again.masks[name], mask) for name, mask in what.masks.items())
    assert all(torch.equal(again.coefficients[name], own) for name, own in what.coefficients.items())
    assert learned_of(folder, what.digest) == what


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
def test_masks_over_entries(tmp_path_factory: pytest.TempPathFactory, tasks: int, n: int, seed: int) -> None:
    """One for all tasks, of any number of entries, beside those of components."""
    folder, what = tmp_path_factory.mktemp("learned"), learned(tuple("abcd"[:tasks]), seed=seed)
    bits = torch.rand(1, 1, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    what = Learned(what.tasks, what.coefficients, {**what.masks, "fc.bias": bits})
    write_learned(folder, what)
    again = read_learned(folder)
    assert again == what
    assert torch.equal(again.masks["fc.bias"], bits)
    assert again.shares["fc.bias"] == what.shares["fc.bias"] == int(bits.sum()) / n
    assert load_file(folder / MASKS)["fc.bias"].shape == (1, 1, -(-n // 8))


def test_files_are_plain_safetensors(folder: Path) -> None:
    what = learned()
    coefficients, masks = load_file(folder / COEFFICIENTS), load_file(folder / MASKS)
    assert coefficients.keys() == what.coefficients.keys()
    assert all(tensor.dtype == torch.float32 and tensor.shape == (3,) for tensor in coefficients.values())
    assert masks["fc.weight"].shape == (2, 3, 2)  # 11 bits are 2 bytes
    bits = np.unpackbits(masks["fc.weight"].numpy(), axis=-1)[..., :11]
    assert np.array_equal(bits.astype(bool), what.masks["fc.weight"].numpy())
    for name, kind in ((COEFFICIENTS, "coefficients"), (MASKS, "masks")):
        with safe_open(folder / name, "pt") as file:
            assert file.metadata()["format"] == "pt"
            record = json.loads(file.metadata()["taskmerge"])
        assert record["kind"] == kind
        assert record["tasks"] == [{"name": task} for task in TASKS]
    assert record["components"] == {"fc.weight": 11}


def test_the_same_contents_give_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    what, other = learned(), tmp_path_factory.mktemp("other")
    write_learned(other, Learned(what.tasks, dict(reversed(what.coefficients.items())), what.masks))
    write_learned(other, what)  # over what is there
    for name in (COEFFICIENTS, MASKS):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in other.iterdir()) == sorted([COEFFICIENTS, MASKS])


def test_masks_of_an_earlier_run_do_not_stay(folder: Path) -> None:
    what = Learned(TASKS, learned().coefficients)
    write_learned(folder, what)
    assert not (folder / MASKS).exists()
    assert read_learned(folder) == what


# --- what is wrong is named ------------------------------------------------------------------------------------


def wrong(folder: Path, words: str | None = None) -> None:
    with pytest.raises(BadFile, match=words) as error:
        read_learned(folder)
    assert error.value.exit_code == 3
    assert error.value.where
    assert error.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.update(ε=torch.ones(4)), r"`ε`: F32 \[4\] where F32 \[3\] is due"),
        (lambda held: held.update(ε=torch.ones(3, 1)), r"F32 \[3, 1\]"),
        (lambda held: held.update(ε=torch.ones(())), r"F32 \[\]"),
        (lambda held: held.update(ε=torch.ones(3).double()), r"F64 \[3\]"),
        (lambda held: held.update(ε=torch.tensor([1.0, float("nan"), 0.0])), "NaN or infinity"),
        (lambda held: held.pop("fc.weight"), "lacks `fc.weight`"),
    ],
)
def test_bad_coefficients(folder: Path, change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    spoilt(folder / COEFFICIENTS, change)
    wrong(folder, words)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 3), torch.uint8),
        ((2, 3, 1), torch.uint8),
        ((2, 4, 2), torch.uint8),
        ((6, 2), torch.uint8),
        ((1, 2, 3, 2), torch.uint8),
        ((2, 3, 2), torch.int8),
        ((2, 3, 2), torch.bool),
    ],
)
def test_bad_shapes_of_masks(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    spoilt(folder / MASKS, lambda held: held.update({"fc.weight": torch.zeros(shape, dtype=dtype)}))
    wrong(folder, r"`fc\.weight`: .* where U8 \[M, 3, 2\] is due")


def test_bits_behind_the_last_component(folder: Path) -> None:
    spoilt(folder / MASKS, lambda held: held["fc.weight"].fill_(255))
    wrong(folder, "bits behind its 11 components")


def test_masks_of_tensors_that_are_not_there(folder: Path) -> None:
    spoilt(folder / MASKS, lambda held: held.update(x=torch.zeros(2, 3, 2, dtype=torch.uint8)))
    wrong(folder, "lacks `x`")
    write_learned(folder, learned())
    spoilt(folder / MASKS, lambda held: held.pop("fc.weight"))
    wrong(folder, "how many components|`components` is")


@pytest.mark.parametrize("count", [None, -1, 1.5, True, "11", 10**30, [11]])
def test_bad_numbers_of_components(folder: Path, count: object) -> None:
    spoilt(folder / MASKS, components={"fc.weight": count})
    wrong(folder, "is no number of components|is due|is malformed")


@pytest.mark.parametrize("name", [COEFFICIENTS, MASKS])
@pytest.mark.parametrize(
    "record",
    [
        {"kind": "merge", "recipe": {}},
        {"kind": None},
        {"tasks": None},
        {"tasks": []},
        {"tasks": "abc"},
        {"tasks": ["a", "b", "c"]},
        {"tasks": [{"name": "c"}, {"name": "b é"}, {"name": "a"}]},
        {"tasks": [{"name": "a"}, {"name": "a"}, {"name": "c"}]},
        {"tasks": [{"name": "a"}, {"name": "b é"}, {"name": "d"}]},
        {"tasks": [{"name": "a"}, {"name": "b é"}]},
    ],
)
def test_bad_records(folder: Path, name: str, record: dict[str, Any]) -> None:
    spoilt(folder / name, **record)
    wrong(folder, "holds no|list of tasks|no record|tasks are not those|is due")


@pytest.mark.parametrize("components", [None, 3, {}, {"fc.weight": 11, "fc.bias": 1}])
def test_bad_lists_of_components(folder: Path, components: object) -> None:
    spoilt(folder / MASKS, components=components)
    wrong(folder, "how many components|`components` is")


@pytest.mark.parametrize("name", [COEFFICIENTS, MASKS])
def test_files_that_are_none(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for bad in (b"", data[:20], data[:-1], b"\xff" * 40, b"{}"):
        (folder / name).write_bytes(bad)
        wrong(folder)
    save_file({"x": torch.ones(3)}, folder / name)
    wrong(folder, "that taskmerge wrote")
    (folder / name).unlink()
    (folder / name).mkdir()
    wrong(folder)


def test_a_folder_without_them(folder: Path) -> None:
    (folder / COEFFICIENTS).unlink()
    wrong(folder, "no such file")


def test_another_digest(folder: Path) -> None:
    with pytest.raises(BadFile, match="made with other coefficients or masks") as error:
        learned_of(folder, learned(seed=1).digest)
    assert error.value.exit_code == 3
