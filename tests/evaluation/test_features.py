"""Features of samples: what heads see, of the same items for every checkpoint, and how many."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taskmerge import evaluate
from taskmerge.checkpoint.adapted import Manifest, write_manifest
from taskmerge.errors import UsageError
from taskmerge.evaluation.results import dumps
from taskmerge.evaluation.scores import Report
from taskmerge.models.adapters import SurgeryAdapter, write_adapter
from taskmerge.specs.suite import Suite
from taskmerge.specs.suite_file import load_suite

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
LIMIT = 30


@pytest.fixture(scope="module")
def suite() -> Suite:
    """Two tasks of the embedded example."""
    found = load_suite(EXAMPLE / "suite.yaml")
    return replace(found, tasks=tuple(task for task in found.tasks if task.name in ("digits", "shapes")), notes=())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base behind an adapter of features for digits."""
    folder = tmp_path_factory.mktemp("adapted")
    (folder / "model.safetensors").symlink_to(EXAMPLE / "base.safetensors")
    (folder / "adapters").mkdir()
    generator = torch.Generator().manual_seed(0)
    width = load_file(EXAMPLE / "heads" / "digits.safetensors")["weight"].shape[1]
    down, up = torch.randn(4, width, generator=generator), torch.randn(width, 4, generator=generator)
    write_adapter(folder / "adapters" / "digits.safetensors", SurgeryAdapter(down, up))
    write_manifest(folder, Manifest(method="surgery", needs_task_index=True, parts=("adapters",)))
    return folder


@pytest.fixture(scope="module")
def found(suite: Suite, adapted: Path) -> Report:
    return evaluate(["base", "experts", f"adapted={adapted}"], suite=suite, limit=LIMIT, features=12, cross=True)


def test_predictions_follow_from_the_features_by_the_head_alone(found: Report, suite: Suite) -> None:
    """So they are what the head sees: of length 1, and behind the adapter."""
    assert len(found.features) == 2 * 3  # experts on their own task
    for own in found.features:
        weight = load_file(EXAMPLE / "heads" / f"{own.task}.safetensors")["weight"].numpy()
        assert own.features.shape == (12, weight.shape[1])
        np.testing.assert_allclose(np.linalg.norm(own.features, axis=1), 1, atol=1e-5)
        assert np.array_equal((own.features @ weight.T).argmax(1), own.predicted)
        assert own.classes == next(task.classes for task in suite.tasks if task.name == own.task)


def test_every_checkpoint_sees_the_same_items(found: Report) -> None:
    """Their labels are those of the file, and what is right is what the bits of the report say."""
    rows = {(row.encoder, row.task): row for row in found.rows}
    for own in found.features:
        with np.load(EXAMPLE / "data" / f"{own.task}.npz") as data:
            assert np.array_equal(data["test_y"][own.places], own.labels)
        others = [other for other in found.features if other.task == own.task]
        assert all(np.array_equal(other.places, own.places) for other in others)
        assert len(set(own.places.tolist())) == 12
        correct = rows[own.encoder, own.task].correct
        assert correct is not None
        assert (own.predicted == own.labels).sum() <= correct.sum()


def test_an_adapter_changes_the_features_of_its_task_alone(found: Report) -> None:
    by_place = {(own.encoder, own.task): own.features for own in found.features}
    assert not np.allclose(by_place["adapted", "digits"], by_place["base", "digits"])
    assert np.array_equal(by_place["adapted", "shapes"], by_place["base", "shapes"])


def test_scores_do_not_depend_on_them(found: Report, suite: Suite, adapted: Path) -> None:
    plain = evaluate(["base", "experts", f"adapted={adapted}"], suite=suite, limit=LIMIT, cross=True)
    assert plain.features == ()
    assert dumps(replace(plain, timing={})) == dumps(replace(found, timing={}))


def test_seeds_draw_other_items_and_more_are_never_kept_than_there_are(suite: Suite) -> None:
    first = evaluate(["base"], suite=suite, limit=LIMIT, features=500)
    assert {len(own.labels) for own in first.features} == {LIMIT}
    drawn = [evaluate(["base"], suite=suite, features=5, seed=seed, tasks="digits").features[0] for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0].places, drawn[1].places)
    assert np.array_equal(drawn[0].features, drawn[1].features)
    assert not np.array_equal(drawn[0].places, drawn[2].places)


@pytest.mark.parametrize("count", [0, 501, -1])
def test_other_numbers_are_refused(suite: Suite, count: int) -> None:
    with pytest.raises(UsageError, match="features of"):
        evaluate(["base"], suite=suite, features=count)


def test_corrupted_pictures_have_none(suite: Suite) -> None:
    pytest.importorskip("imagecorruptions")
    report = evaluate(["base"], suite=suite, limit=4, features=3, tasks="digits", corrupt="jpeg")
    assert len(report.rows) == 2
    assert len(report.features) == 1
