"""Verification and replay: every merge comes out again byte for byte, wherever its experts lie, and damage is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import taskmerge
from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.cli.app import run
from taskmerge.errors import BadFile, BadNumber, Mismatch, NotEnough, UsageError
from taskmerge.merging.replay import replayed
from taskmerge.methods.registry import methods
from taskmerge.numerics.rank import Rank
from vector_cases import COUNTER, TASKS, experts, load, record_of, resealed, write_models

CODES = {"nan": 7, "missing": 3, "changed": 3}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A base and four experts; the working directory is elsewhere, so that nothing is found by chance."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return write_models(tmp_path / "models")


def merged(models: dict[str, Path], out: Path, **options: Any) -> Path:
    options = {"method": "cart", **options}
    return Path(taskmerge.merge(experts(models), output=out, **options).paths[0])


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], None], **record: Any) -> Path:
    """The same file with other tensors, or another provenance, sealed as if taskmerge had written it."""
    with open_checkpoint(path) as checkpoint:
        metadata = dict(checkpoint.metadata)
    tensors = load(path)
    change(tensors)
    metadata["taskmerge"] = json.dumps(resealed({**json.loads(metadata["taskmerge"]), **record}))
    save_file(tensors, path, metadata)
    return path


# --- every merge comes out again -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(methods().keys() - {"lines"}))  # a modifier: see below
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_method_replays(name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    one = methods()[name]
    models = write_models(tmp_path / "models", dtype, TASKS[: one.tasks[1]])
    base = {"base": models["base"]} if one.needs_base or one.gives == "task_vectors" else {}
    path = merged(models, tmp_path / "out" / "m.safetensors", method=name, seed=5, **base)
    found = taskmerge.verify(path, [tmp_path / "models"], threads=1)
    assert found.replayed
    assert found.same_file
    assert {task: Path(one) for task, one in found.experts.items()} == {
        task: models[task] for task in TASKS[: one.tasks[1]]
    }
    assert found.base == (str(models["base"]) if base else None)


SHAPING: tuple[dict[str, Any], ...] = (
    {"method": "cart", "rank": Rank.parse("1.0"), "coefficient": 1.3},
    {"method": "cart", "rank": 1},
    {"method": "cart", "rank": "energy:0.5", "also": ("conv", "projection")},
    {"method": "average", "weights": {"a": 2.5}, "dtype": "bfloat16"},
    {"method": "ties", "density": 0.3, "lines": True},
    {"method": "task_arithmetic", "lines": True},
    {"method": "tsv_m", "lines": True, "coefficient": 0.7},
    {"method": "dare", "then": "ties", "density": 0.5, "seed": 9},
    {"method": "breadcrumbs", "then": "tsv_m"},
    {"method": "task_arithmetic", "coefficient": -0.25, "compute_dtype": "float64", "exclude": ("conv.*",)},
    {"method": "truncated_task_arithmetic", "svd": "randomized", "include": ("blocks.*",), "rank": 3},
)


@pytest.mark.parametrize("options", SHAPING, ids=lambda one: "-".join(map(str, one.values())))
def test_every_shaping_option_replays(options: dict[str, Any], models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors", base=models["base"], **options)
    assert taskmerge.verify(path, [tmp_path / "models"]).same_file


def test_every_point_of_a_grid_replays(models: dict[str, Path], tmp_path: Path) -> None:
    receipt = taskmerge.merge(
        experts(models),
        method="cart",
        rank="0.1,0.3,energy:0.6,1.0",
        coefficient="0.5,1.5",
        output=tmp_path / "m.safetensors",
    )
    assert len(receipt.paths) == 8
    for path in receipt.paths:
        assert taskmerge.verify(path, [tmp_path / "models"]).same_file


def test_another_value_over_a_point_of_a_grid_is_a_merge_of_its_own(models: dict[str, Path], tmp_path: Path) -> None:
    receipt = taskmerge.merge(experts(models), method="cart", rank="2,5", output=tmp_path / "m.safetensors")
    point, out, single = receipt.paths[0], tmp_path / "o.safetensors", tmp_path / "s.safetensors"
    assert record_of(point)["recipe"]["grid"] == {"rank": [2, 5]}
    assert run(["merge", "--recipe", point, str(tmp_path / "models"), "--rank", "4", "-o", str(out), "-q"]) == 0
    taskmerge.merge(experts(models), method="cart", rank=4, output=single)
    assert out.read_bytes() == single.read_bytes()


def test_missing_prefixed_and_stripped_tensors_replay(models: dict[str, Path], tmp_path: Path) -> None:
    for name, path in models.items():
        held = {f"model.{one}": value for one, value in load(path).items()}
        save_file(held if name != "c" else {n: v for n, v in held.items() if "proj" not in n}, path)
    options = {"method": "task_arithmetic", "base": models["base"], "strip_prefix": "model.", "on_missing": "base"}
    path = merged(models, tmp_path / "m.safetensors", **options)
    assert taskmerge.verify(path, [tmp_path / "models"]).same_file


@pytest.mark.parametrize("method", ["cart", "average", "ties"])
def test_tensors_copied_from_the_base_replay(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    alone = {"embed.weight": torch.randn(5, 4), "position_ids": torch.arange(6)}
    save_file({**load(models["base"]), **alone}, models["base"])
    path = merged(models, tmp_path / "m.safetensors", method=method, base=models["base"], on_missing="base")
    assert torch.equal(load(path)["position_ids"], alone["position_ids"])
    found = taskmerge.verify(path, [tmp_path / "models"])
    assert found.same_file
    assert found.base == str(models["base"])


def test_twins_and_a_kept_base_replay(models: dict[str, Path], tmp_path: Path) -> None:
    twice = {"a": models["a"], "again": models["a"], "base": models["base"]}
    receipt = taskmerge.merge(twice, method="cart", rank=3, keep_base=True, output=tmp_path / "m.safetensors")
    assert [task["digest"] for task in receipt.provenance["tasks"][:2]] == [
        receipt.provenance["tasks"][0]["digest"]
    ] * 2  # type: ignore[index]
    assert any("a and again are the same" in warning for warning in receipt.warnings)
    assert taskmerge.verify(receipt.paths[0], [tmp_path / "models"]).same_file


def test_a_merge_of_merges_replays(models: dict[str, Path], tmp_path: Path) -> None:
    first = merged(models, tmp_path / "models" / "first.safetensors", method="average")
    receipt = taskmerge.merge(
        [models["a"], first, models["b"]], method="cart", rank=2, allow_merged=True, output=tmp_path / "m.safetensors"
    )
    assert taskmerge.verify(receipt.paths[0], [tmp_path / "models"]).same_file


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("centre", [False, True])
def test_a_merge_of_task_vectors_replays(
    rank: int | None, centre: bool, models: dict[str, Path], tmp_path: Path
) -> None:
    base = {} if centre else {"base": models["base"]}
    made = taskmerge.vectors(experts(models), output=tmp_path / "v", rank=rank, centre=centre, **base)
    origin = made.paths[0] if centre else models["base"]
    vectors = {f"task-{one.task}": one.path for one in made.outputs if one.task}
    method = "cart" if centre else "truncated_task_arithmetic"
    receipt = taskmerge.merge(
        vectors, method=method, rank=2, base=origin, exclude=("conv.*",), output=tmp_path / "m.safetensors"
    )
    assert taskmerge.verify(receipt.paths[0], [tmp_path / "v", tmp_path / "models"]).same_file


# --- wherever the experts lie ----------------------------------------------------------------------------------


def test_experts_renamed_elsewhere_in_shards_and_in_any_order(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors", method="ties", base=models["base"])
    wanted = path.read_bytes()
    moved = tmp_path / "moved"
    moved.mkdir()
    for new, old in zip(("z", "base", "model", "x"), TASKS, strict=True):  # a name that would call it the base, too
        shutil.move(models[old], moved / f"{new}.safetensors")
    taskmerge.vectors([moved / "x.safetensors"], base=models["base"], output=tmp_path / "noise")
    sharded = taskmerge.merge(
        [models["base"]], method="average", keep_base=True, shard_size=3000, output=moved / "pretrained"
    )
    assert len(sharded.outputs[0].files) > 2
    models["base"].unlink()
    assert taskmerge.verify(path, [moved, tmp_path / "noise"]).same_file
    inputs, keywords = replayed(path, [*sorted(map(str, moved.glob("*.safetensors")))[::-1], str(moved)])
    assert sorted(inputs) == list(TASKS)
    again = taskmerge.merge(inputs, output=tmp_path / "again.safetensors", threads=1, **keywords)
    assert Path(again.paths[0]).read_bytes() == wanted


def test_replay_on_the_command_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = merged(models, tmp_path / "models" / "m.safetensors", method="tsv_m", base=models["base"], coefficient=0.8)
    for number, arguments in enumerate(([], [f"{tmp_path}/models/*.safetensors"], [str(tmp_path / "models")])):
        out = tmp_path / f"{number}.safetensors"
        assert run(["merge", "--recipe", str(path), *arguments, "-o", str(out), "-q"]) == 0
        assert out.read_bytes() == path.read_bytes()
        assert capsys.readouterr().out.split() == [str(out)]
    other = tmp_path / "other.safetensors"
    assert run(["merge", "--recipe", str(path), "--coefficient", "0.4", "-o", str(other), "-q"]) == 0
    assert record_of(other)["recipe"]["options"]["coefficient"] == 0.4
    assert run(["merge", "--recipe", str(path), "-o", str(path), "--overwrite", "-q"]) == 0
    assert path.read_bytes() == (tmp_path / "0.safetensors").read_bytes()


def test_an_unread_base_and_earlier_results_leave_no_trace(models: dict[str, Path], tmp_path: Path) -> None:
    """CART reads no base: whether one lies there, or an earlier result does, changes no byte."""
    folder = tmp_path / "models"
    wanted = merged(models, tmp_path / "plain.safetensors", rank=2).read_bytes()
    for number in range(3):
        receipt = taskmerge.merge(
            [str(folder / "*.safetensors")], method="cart", rank=2, output=folder / "merged.safetensors", overwrite=True
        )
        assert Path(receipt.paths[0]).read_bytes() == wanted
        assert bool(receipt.warnings) == (number > 0)


# --- layouts ---------------------------------------------------------------------------------------------------


def test_shards_and_folders(models: dict[str, Path], tmp_path: Path) -> None:
    shards = merged(models, tmp_path / "s.safetensors", shard_size=3000)
    folder = merged(models, tmp_path / "folder")
    sharded_folder = merged(models, tmp_path / "sf", shard_size=3000)
    for path in (shards, folder, tmp_path / "folder", sharded_folder, tmp_path / "sf"):
        found = taskmerge.verify(path, [tmp_path / "models"])
        assert found.replayed
        assert found.same_file
        assert found.digest == taskmerge.verify(shards, replay=False).digest
    victim = next(one for one in sorted((tmp_path / "sf").glob("*-of-*")) if "proj" in load(one))
    changed(victim, lambda held: held.update(proj=held["proj"] + 1))
    with pytest.raises(BadFile, match=r"1 of 8 tensors are not what the recipe gives: `proj`"):
        taskmerge.verify(tmp_path / "sf", [tmp_path / "models"])


def test_a_file_that_others_wrote_again(models: dict[str, Path], tmp_path: Path) -> None:
    path = changed(merged(models, tmp_path / "m.safetensors"), lambda held: None)
    found = taskmerge.verify(path, [tmp_path / "models"])
    assert found.replayed
    assert not found.same_file
    assert "written again" in found.notes[0]
    changed(path, lambda held: None, version="0.0.9")
    assert "taskmerge 0.0.9" in taskmerge.verify(path, [tmp_path / "models"]).notes[0]


# --- what is wrong is named ------------------------------------------------------------------------------------


def test_changed_tensors_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    def touch(held: dict[str, torch.Tensor]) -> None:
        held["proj"][0, 0] = torch.nextafter(held["proj"][0, 0], torch.tensor(9.0))
        held[COUNTER] += 1

    path = changed(merged(models, tmp_path / "m.safetensors"), touch)
    with pytest.raises(
        BadFile, match=r"2 of 8 tensors are not what the recipe gives: `bn\.num_batches_tracked`, `proj`"
    ) as error:
        taskmerge.verify(path, [tmp_path / "models"])
    assert error.value.exit_code == CODES["changed"]
    assert taskmerge.verify(path, replay=False).replayed is False
    path = changed(merged(models, tmp_path / "n.safetensors"), lambda held: held.pop("proj"))
    with pytest.raises(BadFile):
        taskmerge.verify(path, [tmp_path / "models"])


def test_one_flipped_bit_is_found(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BadFile, match="not what the recipe gives"):
        taskmerge.verify(path, [tmp_path / "models"])


def test_a_changed_record_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    record = record_of(path)
    options = {**record["recipe"], "options": {"rank": 0.9, "coefficient": 1.0}}
    with pytest.raises(BadFile, match="not what the recipe gives"):
        taskmerge.verify(changed(path, lambda held: None, recipe=options), [tmp_path / "models"])
    changed(path, lambda held: None, recipe=record["recipe"], tensors={"linear": 99})
    with pytest.raises(BadFile, match="its provenance was changed: `tensors`"):
        taskmerge.verify(path, [tmp_path / "models"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_are_named(dtype: torch.dtype, bad: float, tmp_path: Path) -> None:
    if dtype == torch.float8_e4m3fn and bad == float("inf"):
        pytest.skip("this type has no infinity")
    held = {"x": torch.zeros(300_000).to(dtype), "y": torch.zeros(3), "n": torch.arange(4)}
    save_file(held, tmp_path / "good.safetensors")
    assert taskmerge.verify(tmp_path / "good.safetensors", replay=False).tensors == 3
    held["x"] = torch.cat([torch.zeros(299_999), torch.tensor([bad])]).to(dtype)
    save_file(held, tmp_path / "bad.safetensors")
    with pytest.raises(BadNumber, match="NaN or infinity in `x`") as error:
        taskmerge.verify(tmp_path / "bad.safetensors", replay=False)
    assert error.value.exit_code == CODES["nan"]


def test_experts_that_are_not_there_are_listed(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors", method="task_arithmetic", base=models["base"])
    models["b"].unlink()
    save_file({name: value * 2 for name, value in load(models["d"]).items()}, models["d"])
    with pytest.raises(BadFile, match="cannot find again, by content") as error:
        taskmerge.verify(path, [tmp_path / "models"])
    assert error.value.exit_code == CODES["missing"]
    assert "`b` (sha256:" in error.value.what
    assert "`d` (sha256:" in error.value.what
    assert "`a`" not in error.value.what
    models["base"].unlink()
    with pytest.raises(BadFile, match="the base"):
        taskmerge.verify(path, [tmp_path / "models"])
    with pytest.raises(BadFile, match="no such file"):
        taskmerge.verify(path, [tmp_path / "nowhere"])


def test_what_cannot_be_replayed(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="carries no recipe") as error:
        taskmerge.verify(models["a"])
    assert "--no-replay" in str(error.value.hint)
    path = merged(models, tmp_path / "m.safetensors", digests=False)
    with pytest.raises(UsageError, match="not digested"):
        taskmerge.verify(path, [tmp_path / "models"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = changed(merged(models, tmp_path / "g.safetensors"), lambda held: None, device="cuda")
    with pytest.raises(NotEnough, match="on a GPU"):
        taskmerge.verify(path, [tmp_path / "models"])


def test_a_truncated_file_is_no_mystery(models: dict[str, Path], tmp_path: Path) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadFile):
        taskmerge.verify(path, [tmp_path / "models"])


def test_verify_on_the_command_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = merged(models, tmp_path / "m.safetensors")
    assert run(["verify", str(path), str(tmp_path / "models")]) == 0
    assert "same bytes, verified (the whole file came out again, byte for byte)" in capsys.readouterr().out
    assert run(["verify", str(path), str(tmp_path / "models"), "--json", "-q"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "same bytes"
    assert said["replayed"]
    assert said["experts"] == {task: str(models[task]) for task in TASKS}
    assert run(["verify", str(path), "--no-replay"]) == 0
    assert "sound and finite, not replayed" in capsys.readouterr().out
    before = sorted(tmp_path.rglob("*"))
    changed(path, lambda held: held.update(proj=held["proj"] + 1))
    assert run(["verify", str(path), str(tmp_path / "models")]) == CODES["changed"]
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "`proj`" in streams.err
    assert sorted(tmp_path.rglob("*")) == before  # a replay leaves nothing behind


def test_mismatched_inputs_of_a_replay_are_impossible(models: dict[str, Path], tmp_path: Path) -> None:
    """A recipe that was changed to something that these experts cannot do is said as such."""
    path = merged(models, tmp_path / "m.safetensors")
    recipe = {**record_of(path)["recipe"], "include": ["nothing.*"]}
    changed(path, lambda held: None, recipe=recipe)
    with pytest.raises(Mismatch, match="no tensor to merge"):
        taskmerge.verify(path, [tmp_path / "models"])
