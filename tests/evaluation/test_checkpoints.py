"""What `eval` accepts, and under which names."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import taskmerge
from taskmerge.checkpoint.adapted import Manifest, write_manifest
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.digest import digest_of
from taskmerge.errors import BadFile, Mismatch, TaskmergeError, UsageError
from taskmerge.evaluation.checkpoints import Encoder, encoders
from taskmerge.experts.arguments import Arguments
from taskmerge.specs.suite import BackboneSpec, Suite, Task


def resolve(location: object) -> Path:
    assert isinstance(location, Path)
    return location


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and two experts in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "cars", "dogs")):
        weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        save_file({"blocks.0.fc.weight": weights}, tmp_path / f"{name}.safetensors")
    return tmp_path


def suite(folder: Path) -> Suite:
    tasks = tuple(
        Task(name, folder / f"{name}.safetensors", "zero_shot", "classification", "accuracy")
        for name in ("cars", "dogs")
    )
    return Suite("two", "suite.yaml", folder, BackboneSpec("open_clip", "x"), folder / "base.safetensors", tasks)


def opened(arguments: Arguments, of: Suite, **options: bool) -> list[Encoder]:
    with ExitStack() as stack:
        return list(encoders(arguments, of, resolve=resolve, stack=stack, **options))


def refused(kind: type[TaskmergeError], arguments: Arguments, of: Suite, says: str, **options: bool) -> None:
    with pytest.raises(kind) as caught:
        opened(arguments, of, **options)
    assert type(caught.value) is kind
    assert says in caught.value.message


def test_words_files_globs_and_names(folder: Path) -> None:
    (folder / "grid").mkdir()
    for name in ("merged-a", "merged-b"):
        save_file({"w": torch.zeros(1)}, folder / "grid" / f"{name}.safetensors")
    found = opened(
        ["experts", "base", "cars.safetensors", "grid/merged-*.safetensors", "mine=dogs.safetensors"], suite(folder)
    )
    assert [(one.row, one.group, one.kind, one.tasks) for one in found] == [
        ("expert:cars", "experts", "expert", ("cars",)),
        ("expert:dogs", "experts", "expert", ("dogs",)),
        ("base", "base", "base", None),
        ("cars", "cars", "checkpoint", None),
        ("merged-a", "merged-a", "checkpoint", None),
        ("merged-b", "merged-b", "checkpoint", None),
        ("mine", "mine", "checkpoint", None),
    ]
    with open_checkpoint(folder / "dogs.safetensors") as dogs:
        assert found[1].digest == found[-1].digest == digest_of(dogs)


def test_identity_has_no_paths(folder: Path) -> None:
    receipt = taskmerge.merge(["cars.safetensors", "dogs.safetensors"], method="average")
    found = opened([receipt.paths[0], "experts"], suite(folder))
    assert found[0].kind == "merge"
    said = found[0].to_dict()
    assert said["recipe"]["method"] == "average"
    assert said["digest"].startswith("sha256:")
    assert found[1].to_dict() == {"name": "expert:cars", "kind": "expert", "digest": found[1].digest, "task": "cars"}
    assert str(folder) not in json.dumps([one.to_dict() for one in found])


def test_a_mapping_names_paths(folder: Path) -> None:
    assert [one.row for one in opened({"one": folder / "cars.safetensors"}, suite(folder))] == ["one"]


def test_folders_in_hugging_face_layout(folder: Path) -> None:
    taskmerge.merge(["cars.safetensors", "dogs.safetensors"], method="average", output=folder / "out", shard_size=1)
    found = opened(["out"], suite(folder))
    assert [(one.row, one.kind) for one in found] == [("out", "merge")]


def test_cross_and_comparisons_bring_the_experts(folder: Path) -> None:
    assert [one.row for one in opened(["base"], suite(folder), with_experts=True)] == [
        "base",
        "expert:cars",
        "expert:dogs",
    ]
    crossed = opened(["base"], suite(folder), cross=True)
    assert [(one.row, one.tasks) for one in crossed[1:]] == [("expert:cars", None), ("expert:dogs", None)]
    assert len(opened(["experts"], suite(folder), cross=True)) == 2


def adapted(folder: Path, **parts: str) -> Path:
    home = folder / "adapted"
    home.mkdir()
    save_file({"w": torch.zeros(1)}, home / "model.safetensors")
    for part, file in parts.items():
        (home / part).mkdir()
        save_file({"weight": torch.zeros(1)}, home / part / file)
    listed = tuple(parts)
    write_manifest(home, Manifest(method="tint", needs_task_index=True, parts=listed, protocol="adapted on adapt"))
    return home


def test_an_adapted_folder_brings_its_heads(folder: Path) -> None:
    home = adapted(folder, heads="cars.safetensors")
    (found,) = opened(["adapted"], suite(folder))
    assert (found.row, found.kind, found.protocol) == ("adapted", "adapted", "adapted on adapt")
    assert found.folder is not None
    assert found.folder.file("heads", "cars") == Path("adapted/heads/cars.safetensors")
    assert found.folder.file("heads", "dogs") is None
    assert found.to_dict()["needs_task_index"] is True
    assert home.samefile(found.folder.path)


def test_an_adapted_folder_without_heads_takes_the_suites(folder: Path) -> None:
    adapted(folder)
    (found,) = opened(["adapted"], suite(folder))
    assert found.folder is not None
    assert (found.folder.place("heads"), found.blocks) == (None, {})


def test_a_part_that_cannot_be_applied_is_refused_by_name(folder: Path) -> None:
    adapted(folder, tasks="cars.safetensors")
    refused(Mismatch, ["adapted"], suite(folder), "(`tasks/`), which this version cannot apply")


def test_a_broken_manifest(folder: Path) -> None:
    (adapted(folder) / "folder.json").write_text("{")
    refused(BadFile, ["adapted"], suite(folder), "folder.json")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"version": 2}, "is of version 2, this taskmerge reads 1"),
        ({"version": "1"}, 'is of version "1", this taskmerge reads 1'),
        ({"method": "tint"}, "has no `version`"),
    ],
)
def test_a_folder_of_another_version_is_refused(folder: Path, manifest: dict[str, object], said: str) -> None:
    (adapted(folder) / "folder.json").write_text(json.dumps(manifest))
    refused(BadFile, ["adapted"], suite(folder), said)
    assert [one.kind for one in opened(["adapted/model.safetensors"], suite(folder))] == ["checkpoint"], (
        "as the hint says"
    )


def test_what_is_no_model(folder: Path) -> None:
    receipt = taskmerge.vectors(["cars.safetensors"], base="base.safetensors", output="vectors")
    refused(Mismatch, [receipt.paths[0]], suite(folder), "holds task vectors, not a model")
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text("{}")
    refused(Mismatch, ["lora"], suite(folder), "is an adapter, not a model")


def test_names_are_unique(folder: Path) -> None:
    (folder / "other").mkdir()
    save_file({"w": torch.zeros(1)}, folder / "other" / "cars.safetensors")
    refused(UsageError, ["cars.safetensors", "other/cars.safetensors"], suite(folder), "`cars` is the name of two")
    refused(UsageError, ["base", "base"], suite(folder), "`base` is given twice")
    refused(UsageError, ["experts=cars.safetensors"], suite(folder), "cannot be called `experts`")


def test_what_the_suite_does_not_have(folder: Path) -> None:
    bare = Suite("bare", "suite.yaml", folder, BackboneSpec("open_clip", "x"), None, ())
    refused(UsageError, ["base"], bare, "the suite has no base")
    headless = Task("cars", None, "zero_shot", "classification", "accuracy", place="suite.yaml:3:1")
    alone = Suite("one", "suite.yaml", folder, BackboneSpec("open_clip", "x"), None, (headless,))
    refused(UsageError, ["experts"], alone, "suite.yaml:3:1: task `cars` has no expert")
    refused(UsageError, [], suite(folder), "nothing to evaluate")
    refused(BadFile, ["car.safetensors"], suite(folder), "did you mean `cars.safetensors`?")
    refused(BadFile, ["no-*.safetensors"], suite(folder), "no file matches")
