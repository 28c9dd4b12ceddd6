"""No label is within reach: no type has a field for one, no module can import one, and poisoned ones change nothing."""

import ast
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adaptation_cases import CLASSES, ITEMS, TASKS, adapt, clip_suite, contents, text_suite

import taskmerge.adaptation
from taskmerge.adaptation.objectives import ExpertView
from taskmerge.adaptation.opening import Opened, OpenedTask
from taskmerge.adaptation.tasks import Features, TaskSide
from taskmerge.adaptation.teachers import Teacher
from taskmerge.data.batches import Batch
from taskmerge.data.items import Items
from taskmerge.errors import UsageError
from taskmerge.methods.adaptive_registry import adaptive_methods
from taskmerge.specs.suite import Split, Suite

UNLABELLED = tuple(name for name, method in adaptive_methods().items() if not method.bound({}).supervised)
SHORT = ("adarank", "symerge", "surgery", "blocks", "heads")


@pytest.mark.parametrize("kind", [Batch, Items, TaskSide, Teacher, ExpertView, OpenedTask, Opened, Features])
def test_no_type_has_a_field_for_labels(kind: Any) -> None:
    names = {field.name for field in fields(kind)}
    assert not names & {"y", "label", "labels", "target", "targets", "truth"}
    assert not any("label" in str(field.type).lower() for field in fields(kind))


def test_no_module_of_adaptation_imports_labels() -> None:
    """Beside the contract of the layers: what is imported inside functions too."""
    for file in Path(taskmerge.adaptation.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("taskmerge.data.labels", "taskmerge.data.datasets")) for name in names), (
                file
            )


def poisoned(suite: Suite, folder: Path, labels: str) -> Suite:
    """The same items, in files whose labels are wrong, of a wrong type, missing, or not there though they are named."""
    folder.mkdir()
    tasks = []
    for task in suite.tasks:
        items = np.load(task.splits["adapt"].location)["x"]  # type: ignore[arg-type]  # a path
        other = {
            "wrong": {"y": np.full(ITEMS, CLASSES[task.name] - 1)}, "no classes": {"y": np.full(ITEMS, 10**6)},
            "texts": {"y": np.array(["?"] * ITEMS)}, "too few": {"y": np.zeros(3)}, "not there": {},
            "pickled": {"y": np.array([object()] * ITEMS, dtype=object)},
        }[labels]  # fmt: skip
        np.savez(folder / f"{task.name}.npz", x=items, **other)
        split = Split("npz", folder / f"{task.name}.npz", ("x",), "y")
        tasks.append(replace(task, splits={"adapt": split}))
    return replace(suite, tasks=tuple(tasks))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return clip_suite(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def plain(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a method writes of the suite as it is."""
    place = tmp_path_factory.mktemp("plain")

    @cache
    def of(method: str) -> Path:
        adapt(suite, place / method, method=method, iterations=1)
        return place / method

    return of


@pytest.mark.parametrize("labels", ["wrong", "no classes", "texts", "too few", "not there", "pickled"])
def test_whatever_stands_in_the_label_column_nothing_reads_it(
    suite: Suite, plain: Callable[[str], Path], tmp_path: Path, labels: str
) -> None:
    adapt(poisoned(suite, tmp_path / "suite", labels), tmp_path / "poisoned", method="symerge", iterations=1)
    assert contents(tmp_path / "poisoned") == contents(plain("symerge"))


@pytest.mark.parametrize("method", SHORT)
def test_methods_of_every_kind_read_no_label(
    suite: Suite, plain: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    assert method in UNLABELLED
    adapt(poisoned(suite, tmp_path / "suite", "not there"), tmp_path / "poisoned", method=method, iterations=1)
    assert contents(tmp_path / "poisoned") == contents(plain(method))


def test_texts_whose_labels_are_not_there(tmp_path: Path) -> None:
    suite = text_suite(tmp_path / "suite", "bert")
    tasks = tuple(
        replace(task, splits={"adapt": replace(task.splits["adapt"], y="label")}) for task in suite.tasks
    )  # fmt: skip
    adapt(replace(suite, tasks=tasks), tmp_path / "out", method="symerge", iterations=1)


def test_supervised_heads_say_what_they_read_and_need_it(suite: Suite, tmp_path: Path) -> None:
    """The one method that reads labels has them by its name, and in every output."""
    assert set(adaptive_methods()) - set(UNLABELLED) == {"supervised_heads"}
    adapt(suite, tmp_path / "out", method="supervised_heads", iterations=1)
    assert "with labels" in (tmp_path / "out" / "folder.json").read_text()
    with pytest.raises(UsageError, match="has no labels") as error:
        adapt(suite, tmp_path / "other", method="supervised_heads", adapt_split="adapt")
    assert error.value.exit_code == 2
    adapt(suite, tmp_path / "plain", method="symerge", adapt_split="test", iterations=1)
    assert "without labels" in (tmp_path / "plain" / "folder.json").read_text()


def test_items_of_a_split_with_labels_are_those_of_one_without(suite: Suite, tmp_path: Path) -> None:
    """Adapting on the test items is the papers' protocol; the labels beside them change no byte."""
    for split in ("adapt", "test"):
        adapt(suite, tmp_path / split, method="adarank", iterations=1, adapt_split=split)
    for name in ("model.safetensors", "coefficients.safetensors", "masks.safetensors", "trace.jsonl"):
        assert contents(tmp_path / "adapt")[name] == contents(tmp_path / "test")[name]
    assert tuple(task.name for task in suite.tasks) == TASKS
