"""`taskmerge vectors`: from the command line to files and back into `merge`."""

import json
from pathlib import Path

import pytest
import torch
from merge_cases import Outcome, load, merge, refused, run, same_tensors, tree

import taskmerge
from taskmerge.checkpoint.checkpoint import Checkpoint

Files = dict[str, Path]
ALL = "*.safetensors"
TASKS = ("cars", "dogs", "maps")


def vectors(*arguments: object) -> Outcome:
    """Vectors that must be written."""
    outcome = run("vectors", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def test_an_output_that_exists_is_found_before_a_byte_is_read(
    experts: Files, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An energy rank reads all matrices before the first file is opened for writing."""
    vectors(ALL, "--rank", "energy:0.9")
    monkeypatch.setattr(Checkpoint, "read_into", lambda *anything: pytest.fail("bytes were read"))
    says = ("vectors/cars.factors.safetensors: exists already", "--overwrite")
    refused(6, "vectors", ALL, "--rank", "energy:0.9", folder=here, says=says)


def test_paths_on_stdout_the_rest_on_stderr(experts: Files, here: Path) -> None:
    outcome = vectors(ALL)
    assert outcome.paths == [f"vectors/{task}.vector.safetensors" for task in TASKS]
    assert "note: base.safetensors is the base" in outcome.err
    assert "done in " in outcome.err
    quiet = vectors(ALL, "-o", "q", "--quiet")
    assert quiet.err == ""
    assert sorted(tree(here / "q")) == [f"{task}.vector.safetensors" for task in TASKS]


def test_json(experts: Files) -> None:
    said = json.loads(vectors(ALL, "--centre", "--rank", "2", "--json").out)
    assert [one["task"] for one in said["outputs"]] == [None, *TASKS]
    assert said["origin"] == "centre"
    assert said["rank"] == "2"
    assert set(said["ranks"]["cars"].values()) == {2}
    assert sorted(said["experts"]) == list(TASKS)


@pytest.mark.parametrize("rank", ["0.25", "3"])
def test_from_vectors_to_a_merge(experts: Files, here: Path, rank: str) -> None:
    wanted = merge(*(f"{task}.safetensors" for task in TASKS), "--rank", rank, "-o", "wanted/m.safetensors").paths[0]
    vectors(ALL, "--centre", "--rank", rank, "-o", "f")
    got = merge(
        "f/*.factors.safetensors", "--base", "f/centre.safetensors", "--rank", rank, "-o", "got/m.safetensors"
    ).paths[0]
    globbed = merge("f/*.safetensors", "--rank", rank, "-o", "globbed/m.safetensors").paths[0]
    assert all(torch.allclose(load(got)[name], value, rtol=0, atol=1e-6) for name, value in load(wanted).items())
    assert same_tensors(load(got), load(globbed))


def test_apply_and_negate(experts: Files, here: Path) -> None:
    outcome = vectors("cars.safetensors", "--base", "base.safetensors", "--apply", "--coefficient", "-0.5")
    assert outcome.paths == ["applied/cars.safetensors"]
    base, cars, got = load("base.safetensors"), load("cars.safetensors"), load("applied/cars.safetensors")
    for name, value in base.items():
        assert torch.allclose(got[name], value - 0.5 * (cars[name] - value), atol=1e-6)
    vectors(ALL, "-o", "v")
    back = vectors(
        "v/cars.vector.safetensors", "--base", "base.safetensors", "--apply", "--dtype", "fp16", "-o", "back"
    )
    assert {value.dtype for value in load(back.paths[0]).values()} == {torch.float16}


def test_refusals(experts: Files, here: Path) -> None:
    refused(2, "vectors", "cars.safetensors", "dogs.safetensors", folder=here, says=("--base", "--centre"))
    refused(2, "vectors", ALL, "--coefficient", "0.5", folder=here, says=("--apply",))
    refused(2, "vectors", ALL, "--rank", "0", folder=here, says=("--rank",))
    refused(2, "vectors", ALL, "--rank", "1.5", folder=here, says=("--rank",))
    refused(2, "vectors", ALL, "--also", "nothing", "--rank", "2", folder=here, says=("--also", "projection"))
    refused(2, "vectors", ALL, "--dtype", "float33", folder=here, says=("float32",))
    refused(2, "vectors", ALL, "--centre", "--shard-size", "many", folder=here, says=("--shard-size",))
    refused(2, "vectors", "a/b=cars.safetensors", "--base", "base.safetensors", folder=here, says=("a/b",))
    refused(2, "vectors", "centre=cars.safetensors", "--base", "base.safetensors", folder=here, says=("centre",))
    refused(3, "vectors", "no.safetensors", "--base", "base.safetensors", folder=here, says=("no.safetensors",))
    refused(5, "vectors", ALL, "--max-memory", "10k", folder=here, says=("--max-memory",))
    vectors(ALL)
    refused(6, "vectors", ALL, folder=here, says=("--overwrite",))
    refused(
        4,
        "merge",
        "vectors/*",
        "--base",
        "cars.safetensors",
        "-m",
        "ties",
        folder=here,
        says=("cars.safetensors", "--base"),
    )
    refused(2, "merge", "vectors/*", "-m", "ties", folder=here, says=("--base",))


def test_the_restriction_is_said_before_the_merge(experts: Files) -> None:
    vectors(ALL, "--rank", "1")
    outcome = run(
        "merge",
        "vectors/*",
        "--base",
        "base.safetensors",
        "-m",
        "truncated-task-arithmetic",
        "--rank",
        "4",
        "--dry-run",
    )
    assert outcome.code == 0
    assert "hold as few as 1 components where the method takes up to 4" in outcome.words


def test_public_names_are_lazy_and_listed() -> None:
    assert set(taskmerge.__all__) <= set(dir(taskmerge))
    assert taskmerge.__all__ == sorted(taskmerge.__all__)
    for name in taskmerge.__all__:
        assert getattr(taskmerge, name) is not None
