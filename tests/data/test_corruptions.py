"""Corruptions: the library's own, the same for an item wherever it stands, and stronger with severity."""

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import Bytes, Squares, load, load_plain, npz, pictures

from taskmerge.data import loading
from taskmerge.data.corruptions import OTHERS, SEVEN, Corruption, corrupt_pixels
from taskmerge.errors import UsageError
from taskmerge.specs.suite import Split

PIXELS = torch.from_numpy(pictures(6, 64)).permute(0, 3, 1, 2).contiguous()
PLACES = torch.tensor([3, 5, 8, 13, 21, 34])


def corrupted(name: str, severity: int = 5, rows: Sequence[int] = range(6), seed: int = 0) -> torch.Tensor:
    pick = torch.tensor(list(rows))
    return corrupt_pixels(PIXELS[pick], PLACES[pick], Corruption(name, severity), seed)


@pytest.mark.parametrize("name", [*SEVEN, "brightness", "frost", "snow", "elastic_transform"])
def test_an_item_is_corrupted_alike_wherever_it_stands(name: str) -> None:
    whole = corrupted(name)
    assert whole.dtype == torch.uint8
    assert whole.shape == PIXELS.shape
    assert torch.equal(corrupted(name, rows=[4, 0, 2]), whole[[4, 0, 2]])
    assert torch.equal(corrupted(name, rows=[1]), whole[[1]])


@pytest.mark.parametrize("name", SEVEN)
def test_the_seven_change_pictures_more_with_severity(name: str) -> None:
    amounts = [float((corrupted(name, severity).float() - PIXELS.float()).abs().mean()) for severity in range(1, 6)]
    assert amounts[0] > 0.2
    assert amounts[4] > amounts[0]
    # spatter turns from water to mud at 4, and the library's contrasts and blurs grow at every step
    assert amounts == sorted(amounts) or name in ("spatter", "motion_blur")


@pytest.mark.parametrize("name", ["motion_blur", "impulse_noise", "gaussian_noise", "spatter"])
def test_noise_differs_between_items_and_seeds(name: str) -> None:
    same = PIXELS[:1].expand(2, -1, -1, -1).contiguous()
    first, second = corrupt_pixels(same, torch.tensor([0, 1]), Corruption(name), 0)
    assert not torch.equal(first, second)
    assert not torch.equal(corrupted(name), corrupted(name, seed=1))


def test_it_is_the_library_that_corrupts() -> None:
    import imagecorruptions

    for name in ("contrast", "pixelate", "jpeg"):  # those without noise
        full = {"jpeg": "jpeg_compression"}.get(name, name)
        for row, found in zip(PIXELS, corrupted(name, 3), strict=True):
            wanted = imagecorruptions.corrupt(row.permute(1, 2, 0).numpy().copy(), severity=3, corruption_name=full)
            np.testing.assert_array_equal(found.permute(1, 2, 0), wanted)


def test_every_corruption_of_the_library_has_a_name_here() -> None:
    from imagecorruptions import get_corruption_names

    assert {*OTHERS, *SEVEN} - {"jpeg"} == set(get_corruption_names("all"))


def test_numpys_generator_is_left_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    corrupted("gaussian_noise")
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_small_pictures_are_enlarged_for_the_library_and_reduced_again(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(3, 24))
    clean, spoilt = (
        load_plain(split, Squares(24), corrupt=kind).inputs["pixels"].float() for kind in (None, Corruption("contrast"))
    )
    assert spoilt.shape == (3, 3, 24, 24)
    assert bool((spoilt.std(dim=(2, 3)) < 0.15 * clean.std(dim=(2, 3))).all())
    assert torch.allclose(spoilt.mean((1, 2, 3)), clean.mean((1, 2, 3)), atol=2)


def test_items_are_corrupted_after_preprocessing(tmp_path: Path) -> None:
    split = npz(tmp_path / "a.npz", x=pictures(40, 64), y=np.arange(40) % 3)
    what = Corruption("gaussian_noise", 2)
    clean, found, few = (
        load(split, Squares(32)),
        load(split, Squares(32), corrupt=what),
        load(split, Squares(32), limit=9, corrupt=what),
    )
    wanted = corrupt_pixels(clean.items.inputs["pixels"], torch.arange(40), what, 0)
    assert torch.equal(found.items.inputs["pixels"], wanted)
    assert torch.equal(few.items.inputs["pixels"], found.items.inputs["pixels"][few.items.indices])
    assert torch.equal(found.labels, clean.labels)
    prints = {one.fingerprint for one in (clean, found, few, load(split, Squares(32), corrupt=what, seed=1))}
    assert len(prints) == 4


def test_corrupted_items_are_kept_apart_and_need_no_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(loading, "BYTES_A_SECOND", float("inf"))
    split, cache, prepare = npz(tmp_path / "a.npz", x=pictures(5, 40)), tmp_path / "cache", Squares(32)
    kinds = [None, Corruption("contrast"), Corruption("contrast", 1), Corruption("pixelate")]
    made = [load_plain(split, prepare, cache=cache, corrupt=kind) for kind in kinds]
    assert prepare.seen == [5]
    assert len(list(cache.iterdir())) == 4
    for kind, one in zip(kinds, made, strict=True):
        again = load_plain(split, prepare, cache=cache, corrupt=kind)
        assert again.fingerprint == one.fingerprint
        assert torch.equal(again.inputs["pixels"], one.inputs["pixels"])
    assert prepare.seen == [5]


def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"unknown corruption `motion_blurr`\nhint: did you mean `motion_blur`"):
        Corruption("motion_blurr")
    for severity in (0, 6):
        with pytest.raises(UsageError, match="not one of 1 to 5"):
            Corruption("contrast", severity)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match="the items of `birds` are texts"):
        load_plain(Split("jsonl", tmp_path / "a.jsonl", ("text",)), Bytes(), corrupt=Corruption("contrast"))

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "imagecorruptions":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"hint: install `imagecorruptions-imaug`"):
        corrupted("contrast")
