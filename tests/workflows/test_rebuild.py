"""Adapted folders made again without data: the same bytes by every way, one task's checkpoint, and what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import taskmerge
from composed_cases import BLOCK, COUNTER, TASKS, adapted, experts, learned, masked, write_models
from taskmerge.checkpoint.adapted import read_adapted
from taskmerge.checkpoint.learned import write_learned
from taskmerge.cli.app import run
from taskmerge.errors import BadFile, BadOutput, Mismatch, TaskmergeError, UsageError
from taskmerge.numerics.rank import Rank
from vector_cases import changed_record, record_of, resealed, same

PARTS = ("coefficients.safetensors", "folder.json", "masks.safetensors", "report.json", "trace.jsonl")
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("composed_base", {}),
    ("composed_base", {"density": 0.2}),
    ("composed_base", {"k": 4}),
    ("composed_base", {"k": 4, "qkv": "split"}),
    ("composed_base", {"k": 4, "qkv": "fused", "compute_dtype": "float64"}),
    ("composed_base", {"what": masked()}),
    ("composed_base", {"what": masked(0.9), "density": 0.3, "dtype": "bfloat16"}),
    ("composed_mean", {}),
    ("composed_mean", {"what": masked(), "compute_dtype": "float64"}),
    ("composed_mean", {"k": 4, "qkv": "fused", "dtype": "bfloat16"}),
]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A base and three experts, and a working directory without anything."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return write_models(tmp_path / "models")


@pytest.fixture
def folder(models: dict[str, Path], tmp_path: Path) -> Path:
    block = {BLOCK + "attn.out_proj.weight": torch.full((12, 12), 2.0), "visual.proj": torch.zeros(12, 7)}
    return adapted(models, tmp_path / "adapted", k=4, qkv="split", blocks={"cars": block})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the same bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), WAYS)
def test_every_way_gives_the_same_bytes(
    models: dict[str, Path], tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    folder = adapted(models, tmp_path / "adapted", method, **options)
    model = folder / "model.safetensors"
    wanted = model.read_bytes()
    assert taskmerge.verify(model, [tmp_path / "models"]).same_file
    taskmerge.rebuild(folder, output=tmp_path / "0.safetensors", threads=1)
    assert run(["merge", "--from", str(folder), "-o", str(tmp_path / "1.safetensors"), "-q"]) == 0
    assert run(["merge", "--recipe", str(model), "-o", str(tmp_path / "2.safetensors"), "-q"]) == 0
    recipe = folder / "recipe.yaml"
    assert run(["merge", "--recipe", str(recipe), "-o", str(tmp_path / "3.safetensors"), "-q"]) == 0
    taskmerge.rebuild(folder, output=tmp_path / "again")
    again = [tmp_path / f"{number}.safetensors" for number in range(4)] + [tmp_path / "again" / "model.safetensors"]
    assert all(path.read_bytes() == wanted for path in again)


def test_experts_are_found_by_content(folder: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """Among the arguments, where the recipe says, in the folder, beside it, and in the working directory."""
    wanted = (folder / "model.safetensors").read_bytes()
    moved = {"arguments": tmp_path / "moved", "folder": folder / "own", "beside": tmp_path, "here": Path.cwd()}
    place = tmp_path / "models"
    for number, (where, new) in enumerate(moved.items()):
        new.mkdir(exist_ok=True)
        for index, path in enumerate(sorted(place.glob("*.safetensors"))):
            shutil.move(path, new / f"{where}{index}.safetensors")
        output = tmp_path / "results" / f"{number}.safetensors"
        taskmerge.rebuild(folder, [new] if where in ("arguments", "folder") else (), output=output)
        assert output.read_bytes() == wanted
        place = new if where in ("arguments", "folder") else tmp_path / "models"
        for path in new.glob(f"{where}*.safetensors"):
            shutil.move(path, place / path.name)


def test_experts_that_are_gone_are_listed(folder: Path, models: dict[str, Path], tmp_path: Path) -> None:
    save_file(load_file(models["base"]), models["digits"])
    for act in (lambda: taskmerge.rebuild(folder), lambda: taskmerge.verify(folder / "model.safetensors")):
        with pytest.raises(BadFile, match=r"cannot find again, by content: `digits` \(sha256:"):
            act()


def test_without_its_model_the_recipe_says_how(folder: Path, tmp_path: Path) -> None:
    wanted = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    receipt = taskmerge.rebuild(folder, output=tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == wanted
    assert any("model.safetensors is not there" in warning for warning in receipt.warnings)
    (folder / "recipe.yaml").unlink()
    document = json.loads((folder / "folder.json").read_text())
    document["parts"].remove("recipe")
    (folder / "folder.json").write_text(json.dumps(document))
    with pytest.raises(BadFile, match=r"neither model\.safetensors nor recipe\.yaml"):
        taskmerge.rebuild(folder)


def test_the_default_output_is_as_for_merge(folder: Path) -> None:
    receipt = taskmerge.rebuild(folder)
    assert receipt.paths == ("merged-composed-base.safetensors",)
    assert Path(receipt.paths[0]).read_bytes() == (folder / "model.safetensors").read_bytes()
    assert receipt.provenance["recipe"]["learned"] == learned("split", 4).digest


# --- whole folders ---------------------------------------------------------------------------------------------


def test_a_folder_is_copied_whole(folder: Path, models: dict[str, Path], tmp_path: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "state").mkdir()
    (folder / "state" / "5.safetensors").write_bytes(b"x")
    receipt = taskmerge.rebuild(folder, output=tmp_path / "far" / "away")
    before, after = files_of(folder), files_of(tmp_path / "far" / "away")
    assert after.keys() == before.keys() - {"state/5.safetensors"}
    assert {name for name in after if after[name] != before[name]} == {"recipe.yaml"}  # its paths are relative to it
    assert read_adapted(tmp_path / "far" / "away").manifest == read_adapted(folder).manifest
    assert receipt.paths == (str(tmp_path / "far" / "away"),)
    assert len(receipt.outputs[0].files) == len(after)
    assert receipt.outputs[0].bytes == sum(map(len, after.values()))
    recipe = yaml.safe_load((tmp_path / "far" / "away" / "recipe.yaml").read_text())
    assert recipe["experts"] == {task: f"../../models/{task}.safetensors" for task in TASKS}
    assert recipe["base"] == "../../models/base.safetensors"
    assert taskmerge.verify(tmp_path / "far" / "away" / "model.safetensors").same_file
    taskmerge.rebuild(tmp_path / "far" / "away", output=tmp_path / "back")
    assert files_of(tmp_path / "back") == {name: before[name] for name in after}


def test_a_folder_is_replaced_whole_or_stays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    taskmerge.rebuild(folder, output=out)
    before = files_of(out)
    with pytest.raises(BadOutput, match="exists already") as error:
        taskmerge.rebuild(folder, output=out)
    assert error.value.exit_code == 6
    (out / "trace.jsonl").write_text("old")
    taskmerge.rebuild(folder, output=out, overwrite=True)
    assert files_of(out) == before
    taskmerge.rebuild(folder, output=folder, overwrite=True)  # in its own place
    assert files_of(folder) == before
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(5, "no")))
        with pytest.raises(BadOutput, match="cannot be written: no"):
            taskmerge.rebuild(folder, output=out, overwrite=True)
    assert files_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapted", "elsewhere", "models", "out"]


def test_what_is_not_of_a_folder_is_not_lost(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(BadOutput, match=r"would be lost: `thesis\.txt`"):
        taskmerge.rebuild(folder, output=out, overwrite=True)
    assert files_of(out) == {"thesis.txt": b"mine"}
    with pytest.raises(BadOutput, match="is a file"):
        taskmerge.rebuild(folder, output=out / "thesis.txt", overwrite=True)


# --- one task --------------------------------------------------------------------------------------------------


def test_one_tasks_checkpoint_has_its_block(folder: Path, tmp_path: Path) -> None:
    shared, block = load_file(folder / "model.safetensors"), load_file(folder / "blocks" / "cars.safetensors")
    receipt = taskmerge.rebuild(folder, task="cars", output=tmp_path / "cars.safetensors")
    own = load_file(tmp_path / "cars.safetensors")
    assert own.keys() == shared.keys()
    assert all(torch.equal(own[name], block.get(name, shared[name])) for name in own)
    record = record_of(tmp_path / "cars.safetensors")
    assert (record["kind"], record["task"]) == ("task", "cars")
    assert receipt.provenance == record
    assert receipt.paths == (str(tmp_path / "cars.safetensors"),)
    taskmerge.rebuild(folder, task="cars", output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "cars.safetensors").read_bytes()
    pair = [tmp_path / "cars.safetensors", tmp_path / "models" / "signs.safetensors"]
    with pytest.raises(Mismatch, match="result of an earlier merge"):
        taskmerge.merge(pair, method="average")
    average = taskmerge.merge(pair, method="average", allow_merged=True)
    assert set(load_file(average.paths[0])) == set(own)  # a model like any other


def test_a_task_without_a_block_has_the_shared_model(folder: Path, tmp_path: Path) -> None:
    taskmerge.rebuild(folder, task="signs", output=tmp_path / "signs.safetensors")
    assert (tmp_path / "signs.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("task", ["cars", "signs"])
def test_one_tasks_folder_has_its_head(folder: Path, tmp_path: Path, task: str) -> None:
    taskmerge.rebuild(folder, task=task, output=tmp_path / "file.safetensors")
    receipt = taskmerge.rebuild(folder, task=task, output=tmp_path / "own")
    held = files_of(tmp_path / "own")
    assert held.keys() == {"README.md", "model.safetensors", f"heads/{task}.safetensors"}
    assert same(tmp_path / "own" / "model.safetensors", tmp_path / "file.safetensors")
    inside, alone = (record_of(tmp_path / name) for name in ("own/model.safetensors", "file.safetensors"))
    assert inside.pop("files") == {"README.md": {}}  # what the folder has beside it
    assert resealed(inside) == alone
    assert held[f"heads/{task}.safetensors"] == (folder / "heads" / f"{task}.safetensors").read_bytes()
    assert receipt.paths == (str(tmp_path / "own"),)


def test_parts_that_no_checkpoint_holds_are_a_warning(folder: Path, tmp_path: Path) -> None:
    (folder / "adapters").mkdir()
    (folder / "adapters" / "signs.safetensors").write_bytes(b"")
    document = json.loads((folder / "folder.json").read_text())
    (folder / "folder.json").write_text(json.dumps({**document, "parts": [*document["parts"], "adapters"]}))
    receipt = taskmerge.rebuild(folder, task="signs", output=tmp_path / "signs.safetensors")
    assert any("`signs` has an adapter of its features" in warning for warning in receipt.warnings)
    assert not taskmerge.rebuild(folder, task="cars", output=tmp_path / "cars.safetensors").warnings


def test_an_input_is_never_replaced(folder: Path, models: dict[str, Path]) -> None:
    before = models["signs"].read_bytes()
    for task in (None, "cars"):
        with pytest.raises(TaskmergeError):
            taskmerge.rebuild(folder, task=task, output=models["signs"], overwrite=True)
    assert models["signs"].read_bytes() == before


def unknown(held: dict[str, torch.Tensor]) -> None:
    held["visual.extra"] = torch.ones(2)


def reshaped(held: dict[str, torch.Tensor]) -> None:
    held["visual.proj"] = torch.ones(7, 12)


def infinite(held: dict[str, torch.Tensor]) -> None:
    held["visual.proj"][0, 0] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (unknown, Mismatch, r"does not have: `visual\.extra`"),
        (reshaped, Mismatch, r"shape \[7, 12\], the model has \[12, 7\]"),
        (infinite, BadFile, "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("output", ["own", "own.safetensors"])
def test_bad_blocks(
    folder: Path, tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None], kind: type[TaskmergeError],
    words: str, output: str,
) -> None:  # fmt: skip
    file = folder / "blocks" / "cars.safetensors"
    held = load_file(file)
    spoil(held)
    save_file(held, file)
    with pytest.raises(kind, match=words):
        taskmerge.rebuild(folder, task="cars", output=tmp_path / output)
    assert not (tmp_path / output).exists()


# --- what is wrong ---------------------------------------------------------------------------------------------


def test_a_run_that_was_killed(folder: Path) -> None:
    (folder / "folder.json").unlink()
    with pytest.raises(BadFile, match="has not come to its end") as error:
        taskmerge.rebuild(folder)
    assert error.value.exit_code == 3
    assert "taskmerge adapt" in str(error.value.hint)
    assert "--resume" in str(error.value.hint)
    with pytest.raises(BadFile, match="there is no such folder"):
        taskmerge.rebuild(folder / "x")
    with pytest.raises(BadFile, match="is a file"):
        taskmerge.rebuild(folder / "model.safetensors")


@pytest.mark.parametrize("way", ["rebuild", "verify", "recipe", "yaml"])
@pytest.mark.parametrize("harm", ["gone", "other", "masks gone", "spoilt"])
def test_what_was_learnt_must_be_there(folder: Path, tmp_path: Path, way: str, harm: str) -> None:
    if harm == "gone":
        (folder / "coefficients.safetensors").unlink()
    elif harm == "other":
        write_learned(folder, learned("split", 4, seed=9))
    elif harm == "masks gone":
        (folder / "masks.safetensors").unlink()
    else:
        (folder / "coefficients.safetensors").write_bytes(b"nothing")
    ways: dict[str, Callable[[], object]] = {
        "rebuild": lambda: taskmerge.rebuild(folder),
        "verify": lambda: taskmerge.verify(folder / "model.safetensors"),
    }
    if way in ways:
        with pytest.raises(BadFile) as error:
            ways[way]()
        assert error.value.exit_code == 3
    else:
        name = "model.safetensors" if way == "recipe" else "recipe.yaml"
        assert run(["merge", "--recipe", str(folder / name), "-o", str(tmp_path / "m.safetensors"), "-q"]) == 3
    assert not (tmp_path / "m.safetensors").exists()


def test_only_what_does_not_shape_the_result_goes_with_a_folder(folder: Path) -> None:
    for keywords, flag in (
        ({"rank": Rank.parse(3)}, "--rank"),
        ({"digests": False}, "--no-digest"),
        ({"base": "x"}, "--base"),
    ):
        with pytest.raises(UsageError, match=f"`{flag}` does not go with --from") as error:
            taskmerge.merge(from_=folder, **keywords)
        assert "--recipe" in str(error.value.hint)
    with pytest.raises(UsageError, match="unknown task `car`") as error:
        taskmerge.rebuild(folder, task="car")
    assert "cars" in str(error.value.hint)


def test_a_model_of_a_gpu_says_so_without_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changed_record(folder / "model.safetensors", device="cuda")
    receipt = taskmerge.rebuild(folder, output=tmp_path / "m.safetensors")
    assert any("made on a GPU" in warning for warning in receipt.warnings)
    assert record_of(tmp_path / "m.safetensors")["device"] == "cpu"


# --- on the command line ---------------------------------------------------------------------------------------


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.safetensors"
    assert run(["merge", "--from", str(folder), "--dry-run"]) == 0
    streams = capsys.readouterr()
    assert "would write merged-composed-base.safetensors" in streams.out
    assert "composed_base: 3 experts" in streams.err
    assert run(["merge", "--from", str(folder), "-o", str(out), "--threads", "1"]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    assert run(["merge", "--from", str(folder), "--task", "cars", "-o", str(tmp_path / "own"), "--json", "-q"]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert receipt["outputs"][0]["path"] == str(tmp_path / "own")
    assert receipt["provenance"]["task"] == "cars"
    assert set(load_file(tmp_path / "own" / "model.safetensors")) >= {COUNTER}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rank", "3"], 2, "`--rank` does not go with --from"),
        (["--method", "cart"], 2, "`--method` does not go with --from"),
        (["--set", "seed=3"], 2, "`--seed` does not go with --from"),
        (["--recipe", "x.yaml"], 2, "`--recipe` does not go with --from"),
        (["--choose", "agreement"], 2, "`--choose` does not go with --from"),
        (["--task", "dogs"], 2, "unknown task `dogs`"),
        (["nowhere.safetensors"], 3, "there is no such file"),
    ],
)
def test_wrong_words(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert run(["merge", "--from", str(folder), *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_task_is_of_a_folder(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", *map(str, experts(models)), "--task", "cars"]) == 2
    assert "name it with --from" in capsys.readouterr().err
    assert run(["merge", *map(str, experts(models)), "--method", "composed_base"]) == 2
    assert "merge --from FOLDER" in capsys.readouterr().err
