"""`taskmerge inspect`: what is in a file, in words and as JSON, and nothing read that need not be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from merge_cases import SHAPES, Outcome, merge, model, refused, run, save, tree

import taskmerge
from taskmerge.checkpoint.checkpoint import Checkpoint, open_checkpoint
from taskmerge.checkpoint.digest import digest_of

Files = dict[str, Path]
TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES.values())


def inspect(*arguments: object) -> Outcome:
    """An inspection that must succeed."""
    outcome = run("inspect", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def document(*arguments: object) -> list[dict[str, Any]]:
    return list(json.loads(inspect(*arguments, "--json").out))


def test_the_table_of_classes(experts: Files, here: Path) -> None:
    before = tree(here)
    out = inspect("cars.safetensors").out
    assert "cars.safetensors: a checkpoint" in out
    assert f"{len(SHAPES)} tensors, {TOTAL:,} parameters, {4 * TOTAL / 1000:.3g} kB; F32 ({len(SHAPES)})" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.split("\n\n")[1].splitlines()[1:]}
    linear = 2 * (24 * 8 + 16 * 8)
    assert rows["linear"] == ["4", str(linear), f"{linear / TOTAL:.1%}", "truncate", "them"]
    assert rows["embedding"] == ["1", "56", f"{56 / TOTAL:.1%}", "–"]
    assert rows["projection"][:2] == ["1", "48"]
    assert rows["vector"][:2] == ["3", "40"]
    assert rows["scalar"][:2] == ["1", "1"]
    assert all(len(line) <= 80 for line in out.splitlines())
    assert tree(here) == before


def test_shares_sum_to_one_and_classes_cover_every_tensor(experts: Files) -> None:
    (said,) = document("cars.safetensors")
    assert sum(row["share"] for row in said["classes"]) == pytest.approx(1)
    assert sum(row["tensors"] for row in said["classes"]) == len(said["tensors"]) == len(SHAPES)
    assert said["parameters"] == sum(row["parameters"] for row in said["classes"]) == TOTAL
    assert {one["name"]: tuple(one["shape"]) for one in said["tensors"]} == SHAPES
    assert {one["name"] for one in said["tensors"] if one["truncated"]} == {
        name for name in SHAPES if "weight" in name and "blocks" in name
    }


def test_every_tensor(experts: Files) -> None:
    lines = inspect("cars.safetensors", "--tensors").out.splitlines()
    for name, shape in SHAPES.items():
        assert any(
            re.fullmatch(rf"  F32 +{re.escape(str(list(shape)))} +\w+ +{re.escape(name)}", line) for line in lines
        ), name


def test_only_headers_are_read(experts: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "read_into", lambda *_: pytest.fail("read"))
    inspect("cars.safetensors", "--tensors")


def test_the_digest_is_that_of_the_content(experts: Files, here: Path) -> None:
    merge("*.safetensors", "-m", "average", "-o", "shards.safetensors", "--shard-size", "1k")
    merge("*.safetensors", "-m", "average", "-o", "one.safetensors", "--skip-input", "shards*")
    one, shards = document("one.safetensors", "shards.safetensors.index.json", "--digest")
    with open_checkpoint(here / "one.safetensors") as checkpoint:
        assert one["digest"] == shards["digest"] == digest_of(checkpoint)
    assert len(shards["files"]) > 1
    assert f"in {len(shards['files'])} files" in inspect("shards.safetensors.index.json").out
    assert one["digest"] in inspect("one.safetensors", "--digest").out
    assert document("one.safetensors")[0]["digest"] is None


def test_what_taskmerge_wrote_says_how(experts: Files) -> None:
    merge("*.safetensors", "--rank", "0.25", "--coefficient", "1.5", "--dtype", "float16", "-o", "m.safetensors")
    out = inspect("m.safetensors").out
    assert "m.safetensors: a merged checkpoint" in out
    assert "method: cart (coefficient 1.5, rank 0.25)" in out
    assert "dtype: F16" in out
    with safetensors.safe_open("m.safetensors", "pt") as file:
        record = json.loads(file.metadata()["taskmerge"])
    for task in record["tasks"]:
        assert f"task {task['name']}: {task['digest']}" in out
    assert f"written by: taskmerge {taskmerge.__version__} on cpu" in out
    del record["seal"]
    assert document("m.safetensors")[0]["provenance"] == record
    merge("*.safetensors", "-m", "ties", "-o", "t.safetensors", "--skip-input", "m.*")
    assert re.search(r"base: sha256:\w{64}", inspect("t.safetensors").out)


def test_vectors_factors_and_centre(experts: Files) -> None:
    assert run("vectors", "*.safetensors", "--rank", "2").code == 0
    assert run("vectors", "cars.safetensors", "dogs.safetensors", "--centre", "-o", "c").code == 0
    factors, vector, centre = document(
        "vectors/cars.factors.safetensors", "c/cars.vector.safetensors", "c/centre.safetensors"
    )
    assert [one["kind"] for one in (factors, vector, centre)] == ["factors", "vector", "centre"]
    assert {one["name"]: tuple(one["shape"]) for one in factors["tensors"]} == SHAPES  # what the factors stand for
    assert {one["rank"] for one in factors["tensors"]} == {2, None}
    out = inspect("vectors/cars.factors.safetensors", "--tensors").out
    assert "understood: rank 2" in out
    assert re.search(r"\[24, 8\] +linear +blocks.0.attn.in_proj_weight  \(rank 2\)", out)
    assert "origin: centre" in inspect("c/cars.vector.safetensors").out
    assert "c/centre.safetensors: a centre" in inspect("c/centre.safetensors").out


def test_several_paths_globs_and_folders(experts: Files, here: Path) -> None:
    merge("*.safetensors", "-o", "folder/")
    said = document("*.safetensors", "folder")
    assert [one["path"] for one in said] == [
        "base.safetensors",
        "cars.safetensors",
        "dogs.safetensors",
        "maps.safetensors",
        "folder",
    ]
    assert inspect("cars.safetensors", "dogs.safetensors").out.count(": a checkpoint") == 2


def test_a_pickle_needs_permission(here: Path) -> None:
    tensors = model(0)
    torch.save({**tensors, "second": tensors["proj"]}, here / "m.bin")
    refused(3, "inspect", "m.bin", says=("--allow-pickle",))
    out = inspect("m.bin", "--allow-pickle").out
    assert "`second` is tied to `proj`" in out
    assert f"{len(SHAPES) + 1} tensors" in out


def test_an_adapter(here: Path) -> None:
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["fc"],
        "base_model_name_or_path": "org/base",
    }
    name = "base_model.model.blocks.0.mlp.fc"
    save(
        here / "lora" / "adapter_model.safetensors",
        {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(16, 4)},
    )
    (here / "lora" / "adapter_config.json").write_text(json.dumps(config))
    assert document("lora")[0]["adapter"] == config
    out = inspect("lora").out
    assert "lora: an adapter" in out
    assert "lora_alpha: 8" in out
    (here / "lora" / "adapter_config.json").write_text("{")
    refused(3, "inspect", "lora", says=("adapter_config.json", "not JSON"))


def test_refusals(here: Path) -> None:
    refused(3, "inspect", "nothing.safetensors", says=("no such file",))
    refused(3, "inspect", "*.safetensors", says=("no file matches",))
    (here / "text.safetensors").write_text("hello, this is not a model at all")
    refused(3, "inspect", "text.safetensors", says=("text.safetensors",))
    save(here / "odd.safetensors", model(0), {"taskmerge": "no json"})
    refused(3, "inspect", "odd.safetensors", says=("no JSON object",))


def test_the_python_function(experts: Files) -> None:
    found = taskmerge.inspect("cars.safetensors")
    assert isinstance(found, taskmerge.Inspection)
    assert found.kind == "checkpoint"
    with pytest.raises(AttributeError):
        found.kind = "x"  # type: ignore[misc]
