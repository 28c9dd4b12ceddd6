"""`taskmerge suites`: the list, one in full, names and templates, and a copy of the file."""

import json
from pathlib import Path

import pytest
from merge_cases import refused, run

from taskmerge.specs.suite_file import load_suite, packaged


def test_the_list() -> None:
    out = run("suites").out
    rows = {
        line.split()[0]: line.split()[1] for line in out.splitlines()[1:] if line.startswith(("clip", "glue", "ny"))
    }
    assert rows == {name: str(len(load_suite(path).tasks)) for name, path in packaged().items()}
    said = json.loads(run("suites", "--json").out)
    assert [one["name"] for one in said] == list(packaged())
    assert said[0]["tasks"][0] == "sun397"


def test_one_in_full() -> None:
    out = run("suites", "glue-roberta-base-8").out
    assert "stsb" in out
    assert "pearson+spearman" in out
    assert "note: Nothing of this suite was run" in out
    said = json.loads(run("suites", "clip-vit-b-32-8", "--json").out)
    assert said["qkv"] == "fused"
    assert said["tasks"][2]["expert"] == "hub tanganke/clip-vit-base-patch32_resisc45"
    assert len(said["tasks"][2]["classes"]) == 45


def test_names_and_templates() -> None:
    out = run("suites", "clip-vit-b-32-8", "--classes", "eurosat").out
    assert out.startswith("eurosat: 10 classes, 3 templates")
    assert "  a centered satellite photo of {}." in out
    assert "    9  lake or sea" in out
    assert run("suites", "--classes", "eurosat").out == out, "the catalogue has the same names"
    said = json.loads(run("suites", "--classes", "emnist", "--json").out)
    assert said["classes"] == list("0123456789")


def test_a_copy_of_the_file_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(run("suites", "clip-vit-b-16-8", "--yaml").out, encoding="utf-8")
    mine, packed = load_suite(path), load_suite(packaged()["clip-vit-b-16-8"])
    assert [(task.name, task.classes, task.expert) for task in mine.tasks] == [
        (task.name, task.classes, task.expert) for task in packed.tasks
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("clip-vit-b-33-8",), "did you mean `clip-vit-b-32-8`?"),
        (("clip-vit-b-32-8", "--classes", "eurosatt"), "did you mean `eurosat`?"),
        (("--classes", "eurosatt"), "did you mean `eurosat`?"),
        (("--yaml",), "--yaml: prints the file of one suite"),
        (("clip-vit-b-32-8", "--yaml", "--json"), "--yaml: prints the file of one suite"),
        (("clip-vit-b-32-8", "--yaml", "--classes", "mnist"), "--yaml: prints the file of one suite"),
    ],
)
def test_unknown_names_and_contradictions(arguments: tuple[str, ...], says: str) -> None:
    refused(2, "suites", *arguments, says=(says,))
