"""Maps to be learnt and swept: heads with statistics of a batch norm, encoders whose merges can be no model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

import taskmerge
from dense_rooms import TASKS, write_rooms
from taskmerge.adaptation.fitted import fit_head
from taskmerge.adaptation.opening import tensors_digest
from taskmerge.errors import UsageError
from taskmerge.models.dense import DenseHead
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.specs.suite import Suite, TaskKind
from taskmerge.specs.suite_file import load_suite
from taskmerge.workflows.sweeps.schema import schema

READ = {"strip_prefix": "encoder.", "also": "conv", "device": "cpu", "threads": 1, "batch_size": 2, "limit": 2}


def test_a_digest_takes_in_what_a_batch_norm_counts() -> None:
    norm = nn.BatchNorm2d(3)
    before = tensors_digest(norm)
    assert tensors_digest(nn.BatchNorm2d(3)) == before
    norm.get_buffer("num_batches_tracked").fill_(7)
    assert tensors_digest(norm) != before


@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
def test_the_last_layer_of_a_deeplab_head_is_solved_for(kind: TaskKind) -> None:
    """Towards maps that the same layers make with another last one: nearer to them than before."""
    torch.manual_seed(0)
    outputs = {"segmentation": 4, "depth": 1, "normals": 3}[kind]
    features = torch.randn(3, 6, 4, 4)
    layers = DeepLabHead(6, outputs).eval()
    head = DenseHead(kind, layers, outputs).requires_grad_(False)
    last = layers[-1]
    assert isinstance(last, nn.Conv2d)
    start = last.weight.clone()
    last.weight.copy_(torch.randn_like(start))
    expert = head(features)
    last.weight.copy_(start)
    solved = fit_head(head, features, expert, kind, AdaptSpec(head_pull=1e-4))
    assert solved.loss < solved.start_loss
    assert not torch.equal(last.weight, start)


# --- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    with tempfile.TemporaryDirectory() as name:
        write_rooms(Path(name))
        yield load_suite(Path(name) / "suite.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "heads", "adamerging", "adarank", "tint", "symerge", "surgery"])
def test_maps_are_adapted(suite: Suite, method: str | None) -> None:
    given: dict[str, Any] = {"method": method} if method is not None else {}
    folder = suite.folder / "adapted"  # goes with the suite: pytest would keep it
    options = {"adapt_split": "test", "iterations": 1, "scores": False, "overwrite": True, **READ, **given}
    taskmerge.adapt(suite=suite, output=folder, **options)
    report = taskmerge.evaluate({"adapted": folder}, suite=suite, batch_size=2, limit=2)
    assert {row.task for row in report.rows} == {*TASKS}


@pytest.mark.slow
def test_supervised_heads_learn_no_maps(suite: Suite) -> None:
    with pytest.raises(UsageError, match="`segmentation` is a task of segmentation"):
        taskmerge.adapt(
            suite=suite, output=suite.folder / "heads only", method="supervised_heads", adapt_split="test", **READ
        )


@pytest.mark.slow
def test_an_average_needs_no_class_of_matrices(suite: Suite) -> None:
    inputs = [str(task.expert) for task in suite.tasks]
    taskmerge.adapt(
        inputs, suite=suite, output=suite.folder / "blocks", init="average", adapt_split="test", iterations=1,
        scores=False, **{**READ, "also": None},
    )  # fmt: skip


@pytest.mark.slow
def test_maps_are_swept_and_merges_that_are_no_model_have_no_score(suite: Suite, tmp_path: Path) -> None:
    """Far from the experts a variance falls below zero: its root is NaN. Other points are there all the same."""
    asked = {"suite": suite, "output": tmp_path, "sweep_rank": "0.1", "sweep_coefficient": "0.3,30", **READ}
    found = taskmerge.sweep("coefficient,pairs,landscape", **asked).document
    jsonschema.validate(found, schema())
    by_coefficient: dict[float, list[Any]] = {}
    for point in found["coefficient"]["points"]:
        by_coefficient.setdefault(point["coefficient"], []).append(point)
    assert all(entry["score"] is not None for point in by_coefficient[0.3] for entry in point["scores"])
    broken = [point for point in by_coefficient[30.0] if point["scores"][0]["score"] is None]
    assert broken
    assert all(point["average"] is None and point["normalised"] is None for point in broken)
    lost = [way for way in found["landscape"]["ways"] if way["losses"][0]["mean"] is None]
    assert {way["coefficient"] for way in lost} == {30.0}
    assert taskmerge.sweep("coefficient,pairs,landscape", **asked).document == found
