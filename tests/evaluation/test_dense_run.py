"""Dense tasks from a suite to scores: segmentation, depth and normals of one ResNet-50, as a NYUv2 suite has them."""

import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from dense_rooms import CLASSES, COUNT, HEIGHT, KINDS, TASKS, WIDTH, images, labels, trunk, write_rooms
from taskmerge import evaluate
from taskmerge.cli.app import run as command
from taskmerge.errors import BadFile, Mismatch, TaskmergeError
from taskmerge.evaluation import run as running
from taskmerge.evaluation.scores import Report
from taskmerge.models import outputs as outputs_loop
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # 230 MB, which pytest would keep
        write_rooms(Path(name))
        yield Path(name)


@pytest.fixture(scope="module")
def suite(folder: Path) -> Suite:
    return load_suite(folder / "suite.yaml")


# --- the same without taskmerge --------------------------------------------------------------------------------


def outputs(folder: Path, encoder: str, task: str) -> Tensor:
    """Maps [N, outputs, H, W] of an encoder (`base` or an expert's task) with a task's head."""
    model = trunk(0)
    if encoder != "base":
        own = load_file(folder / f"{encoder}.safetensors")
        model.load_state_dict({name.removeprefix("encoder."): one for name, one in own.items()}, strict=False)
    head = DeepLabHead(2048, KINDS[task][2]).eval()
    head.load_state_dict(load_file(folder / "heads" / f"{task}.safetensors"))
    features = torch.from_numpy(images()).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        for part in model.children():
            features = part(features)
        return functional.interpolate(head(features), scale_factor=8, mode="bilinear", align_corners=True)


def miou(found: Tensor, true: NDArray[Any]) -> float:
    predicted = found.argmax(1).numpy()
    counted = (true != -1) & (true != 255)
    shares = []
    for one in range(CLASSES):
        said, meant = (predicted == one) & counted, true == one
        if (said | meant).any():
            shares.append((said & meant).sum() / (said | meant).sum())
    return float(np.mean(shares))


def abs_error(found: Tensor, true: NDArray[Any]) -> float:
    return float(np.abs(found.numpy() - true)[true != 0].mean())


def angle(found: Tensor, true: NDArray[Any]) -> float:
    one, other = (maps.astype(np.float64) for maps in (found.numpy(), true))
    known = np.linalg.norm(other, axis=1) > 0
    cosines = (one * other).sum(1)[known] / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))[known]
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean())


METRICS: dict[str, Callable[[Tensor, NDArray[Any]], float]] = {
    "segmentation": miou, "depth": abs_error, "normal": angle,
}  # fmt: skip


def expected(folder: Path, encoder: str, task: str) -> float:
    return METRICS[task](outputs(folder, encoder, task), labels()[task])


def scores(report: Report) -> dict[tuple[str, str], float]:
    return {(row.encoder, row.task): row.score.value for row in report.rows if row.corruption is None}


# --- results ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(suite: Suite) -> Report:
    return evaluate(["experts", "base"], suite=suite, batch_size=2)


def test_scores_are_those_computed_pixel_by_pixel(folder: Path, report: Report) -> None:
    found = scores(report)
    wanted = {(f"expert:{task}", task): expected(folder, task, task) for task in TASKS}
    wanted |= {("base", task): expected(folder, "base", task) for task in TASKS}
    assert found == {key: pytest.approx(value, rel=1e-4) for key, value in wanted.items()}
    assert len(set(found.values())) == len(found), "scores that could be told apart"
    for row in report.rows:
        assert row.score.n == COUNT
        assert row.score.low <= row.score.value <= row.score.high
        assert row.score.lower_is_better == (row.task != "segmentation")


def test_one_pass_of_an_encoder_serves_all_tasks_of_the_same_pictures(report: Report) -> None:
    assert report.timing["samples"] == COUNT * (len(TASKS) + 1)  # the base once, not once a task


def test_errors_are_normalised_the_other_way_round_and_the_mixed_mean_is_said(report: Report) -> None:
    found = scores(report)
    relative = {row.task: row.normalised for row in report.rows if row.encoder == "base"}
    for task in TASKS:
        ratio = found["base", task] / found[f"expert:{task}", task]
        assert relative[task] == pytest.approx(ratio if task == "segmentation" else 1 / ratio)
    assert any("mixes scores with errors" in note for note in report.notes)


def test_maps_are_not_kept(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch is scored, the maps of all earlier batches are gone, and none has more than a batch of them."""
    seen: list[weakref.ref[Tensor]] = []
    plain = running.contributions

    def spying(metric: str, outputs: Tensor, true: Tensor) -> Any:
        assert len(outputs) <= 2
        assert all(one() is None for one in seen)
        seen.append(weakref.ref(outputs))
        return plain(metric, outputs, true)

    monkeypatch.setattr(running, "contributions", spying)
    evaluate(["base"], suite=suite, batch_size=2, compare="experts", loss_correlation=True)
    assert len(seen) == 2 * len(TASKS) * 3  # base and expert, 5 items in threes


def test_batches_do_not_matter(suite: Suite, report: Report) -> None:
    found = evaluate(["base"], suite=suite, batch_size=64)
    assert scores(found) == {
        key: pytest.approx(value, rel=1e-5) for key, value in scores(report).items() if key[0] == "base"
    }


def test_cross_has_every_encoder_with_every_head(folder: Path, suite: Suite, report: Report) -> None:
    found = scores(evaluate([], suite=suite, batch_size=2, cross=True))
    assert len(found) == len(TASKS) ** 2
    assert {key: value for key, value in found.items() if key in scores(report)}.items() <= scores(report).items()
    assert found["expert:depth", "normal"] == pytest.approx(expected(folder, "depth", "normal"), rel=1e-4)


def test_what_compares_classes_says_that_it_left_dense_tasks_out(suite: Suite) -> None:
    found = evaluate(["base"], suite=suite, limit=2, compare="experts", loss_correlation=True)
    assert found.comparisons == ()
    assert found.correlations == ()
    assert "compared on tasks of classification only: not on segmentation, depth, normal" in found.notes


def test_pictures_can_be_corrupted_and_labels_stay(suite: Suite) -> None:
    found = evaluate(["base"], suite=suite, limit=2, corrupt=["gaussian_noise", "jpeg"])
    by_corruption = {row.corruption: row.score.value for row in found.rows if row.task == "depth"}
    assert len(set(by_corruption.values())) == 3


def test_the_command_prints_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["eval", "base", "experts", "--suite", str(folder), "--limit", "2", "--no-cache"]) == 0
    said = capsys.readouterr()
    assert all(task in said.out for task in TASKS)
    assert "mixes scores with errors" in said.err


# --- other forms of the same data, and data that do not fit ------------------------------------------------------


def with_data(suite: Suite, path: Path, task: str, **changes: Any) -> Suite:
    """The suite with this task alone, on other data."""
    (one,) = (one for one in suite.tasks if one.name == task)
    split = replace(one.splits["test"], location=path, **changes)
    return replace(suite, tasks=(replace(one, splits={"test": split}),))


def test_arrays_of_floats_in_a_saved_data_set_give_the_same_scores(
    tmp_path: Path, suite: Suite, report: Report
) -> None:
    """As the public copy of NYUv2 is stored: Array columns, channels first, values in [0, 1]."""
    import datasets

    size = (HEIGHT, WIDTH)
    features = datasets.Features(
        image=datasets.Array3D((3, *size), "float32"), segmentation=datasets.Array2D(size, "int64"),
        depth=datasets.Array3D((1, *size), "float32"), normal=datasets.Array3D((3, *size), "float32"),
    )  # fmt: skip
    floats = (images().transpose(0, 3, 1, 2) / 255).astype(np.float32)
    rows = {"image": list(floats), **{name: list(maps) for name, maps in labels().items()}}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "rooms")
    for task in TASKS:
        found = evaluate(["base"], suite=with_data(suite, tmp_path / "rooms", task, form="datasets"), batch_size=2)
        assert scores(found)["base", task] == pytest.approx(scores(report)["base", task], rel=1e-6)


def refused(suite: Suite) -> TaskmergeError:
    with pytest.raises(TaskmergeError) as caught:
        evaluate(["base"], suite=suite)
    return caught.value


def test_data_that_do_not_fit_are_refused_before_anything_is_encoded(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_loop, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    file = tmp_path / "data.npz"
    np.savez(file, image=images(), depth=labels()["depth"][:, :, ::2, ::2])
    error = refused(with_data(suite, file, "depth"))
    assert isinstance(error, Mismatch)
    assert error.what == "task `depth`: label maps are 12x16, pictures 24x32"
    np.savez(file, image=images()[:, :20], depth=labels()["depth"][:, :, :20])
    error = refused(with_data(suite, file, "depth"))
    assert "pictures are 20x32, sides must be multiples of 8" in error.what
    np.savez(file, image=images(), segmentation=np.full((COUNT, HEIGHT, WIDTH), CLASSES))
    error = refused(with_data(suite, file, "segmentation"))
    assert (type(error), "label 4 is outside the 4 classes" in error.what) == (BadFile, True)
    np.savez(file, image=images(), normal=labels()["depth"])
    error = refused(with_data(suite, file, "normal"))
    assert (type(error), error.hint) == (BadFile, "maps are [3, H, W]")


def test_labels_of_which_none_is_known_are_refused(tmp_path: Path, suite: Suite) -> None:
    np.savez(tmp_path / "data.npz", image=images(), segmentation=np.full((COUNT, HEIGHT, WIDTH), 255))
    error = refused(with_data(suite, tmp_path / "data.npz", "segmentation"))
    assert (type(error), "no item has a label" in error.what) == (BadFile, True)
