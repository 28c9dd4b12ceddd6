"""What `spectrum` recommends can be pasted: as a command, and as the recipe beside its report."""

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from merge_cases import load, provenance, run, save

import taskmerge
from taskmerge.spectra.report import schema


def recommended(*arguments: object) -> dict[str, Any]:
    outcome = run("spectrum", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    jsonschema.Draft202012Validator(schema()).validate(document)
    return dict(document["recommendation"])


@pytest.mark.parametrize("base", [["--base", "base.safetensors"], []])
def test_the_command_goes_through_as_it_stands(experts: dict[str, Path], base: list[str]) -> None:
    Path("my dogs.safetensors").write_bytes(Path("dogs.safetensors").read_bytes())
    found = recommended("cars.safetensors", "maps.safetensors", "odd=my dogs.safetensors", *base)
    assert shlex.split(str(found["command"])) == found["arguments"]
    outcome = run(*found["arguments"][1:])
    assert outcome.code == 0, outcome.err
    record = provenance(outcome.paths[0])
    assert record["recipe"] == found["recipe"]
    assert [one["name"] for one in record["tasks"]] == ["cars", "maps", "odd"]


def test_the_recipe_beside_the_report_gives_the_same_merge(experts: dict[str, Path]) -> None:
    files = ("cars.safetensors", "dogs.safetensors", "maps.safetensors")
    assert run("spectrum", *files, "--base", "base.safetensors", "-o", "out", "-q").code == 0
    found = json.loads(Path("out/report.json").read_text())["recommendation"]
    one, other = run(*found["arguments"][1:]), run("merge", "--recipe", "out/recipe.yaml", "-o", "again.safetensors")
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert Path(one.paths[0]).read_bytes() == Path("again.safetensors").read_bytes()


def test_options_of_the_spectrum_are_those_of_the_command(experts: dict[str, Path]) -> None:
    for place, task in enumerate(("cars", "dogs", "maps")):
        save(Path(f"{task}.safetensors"), {**load(f"{task}.safetensors"), "head.weight": torch.randn(3 + place, 8)})
    files = ("cars.safetensors", "dogs.safetensors", "maps.safetensors")
    found = recommended(*files, "--base", "base.safetensors", "--exclude", "norm.*")
    words = " ".join(found["arguments"])
    assert "--exclude norm.*" in words
    assert "--heads keep" in words
    assert run(*found["arguments"][1:]).code == 0


def test_matrices_that_were_asked_for_are_those_of_the_command(experts: dict[str, Path]) -> None:
    """Without any of the class `linear`, a truncation that does not name the others finds nothing."""
    for name in ("base", "cars", "dogs", "maps"):
        save(Path(f"{name}.safetensors"), {"conv.weight": torch.randn(6, 4, 3, 3), "conv.bias": torch.randn(6)})
    files = ("cars.safetensors", "dogs.safetensors", "maps.safetensors")
    found = recommended(*files, "--base", "base.safetensors", "--also", "conv")
    assert run(*found["arguments"][1:]).code == 0
    asked = taskmerge.spectrum(list(files), base="base.safetensors", also=["conv"], exclude=["nothing.*", "none"])
    again = asked.to_dict()["recommendation"]
    assert run(*again["arguments"][1:], "--overwrite").code == 0


def test_merged_inputs_that_were_allowed_are_in_the_command(experts: dict[str, Path]) -> None:
    merging = ("merge", "-m", "average", "cars.safetensors", "dogs.safetensors", "-o", "both.safetensors")
    assert run(*merging).code == 0
    found = recommended("both.safetensors", "maps.safetensors", "--base", "base.safetensors", "--allow-merged")
    assert run(*found["arguments"][1:]).code == 0


def test_the_page_ends_in_the_command(experts: dict[str, Path]) -> None:
    outcome = run("spectrum", "cars.safetensors", "dogs.safetensors", "maps.safetensors", "--base", "base.safetensors")
    command = outcome.out[outcome.out.rindex("\ntaskmerge merge") :]
    assert run(*shlex.split(command.replace("\\\n", " "))[1:]).code == 0


def test_one_expert_is_no_merge(experts: dict[str, Path]) -> None:
    outcome = run("spectrum", "cars.safetensors", "--base", "base.safetensors", "--json")
    assert "recommendation" not in json.loads(outcome.out)
