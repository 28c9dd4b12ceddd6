"""--keep-from: tensors that are copied from one input, unmerged; and the warning about folders that lack tensors."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_cases import merge, refused
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.errors import Mismatch, UsageError

NAMES = [f"layers.{n}.{part}.weight" for n in range(9) for part in ("attn", "mlp")] + ["embed.weight", "lm_head.weight"]
SEEDS = {"base": 0, "one": 1, "two": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders `base`, `one` and `two` of one model in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, seed in SEEDS.items():
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / name).mkdir()
        tensors = {tensor: torch.randn(4, 4, generator=generator) for tensor in NAMES}
        save_file({**tensors, "ids": torch.tensor([seed])}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "own"}))
    return tmp_path


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(Path(name) / "model.safetensors")


METHODS = ("average", "task_arithmetic", "cart")


@pytest.mark.parametrize("who", SEEDS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_one_inputs_and_the_rest_is_merged_as_ever(here: Path, who: str, method: str) -> None:
    options: dict[str, Any] = {"method": method, "base": "base"}
    pairs = [(who, "layers.[0-3].*"), (who, "ids"), ("two", "layers.3.*"), ("one", "lm_head*")]
    receipt = taskmerge.merge(["one", "two"], output="out", keep_from=pairs, **options)
    taskmerge.merge(["one", "two"], output="whole", on_buffer="first", **options)
    out, own, whole = tensors("out"), tensors(who), tensors("whole")
    kept = {name for name in out if re.match(r"layers\.[0-3]\.|ids", name)}
    assert out.keys() == own.keys()
    for name, tensor in out.items():
        expected = own if name in kept else tensors("one") if name.startswith("lm_head") else whole
        assert torch.equal(tensor, expected[name]), name
    assert any(f"copied unmerged from {who}: {9 if who != 'one' else 10} tensors" in note for note in receipt.notes)
    assert taskmerge.verify("out").same_file
    assert not any("lacks" in warning for warning in receipt.warnings)


def test_the_command_takes_pairs_and_counts_them(here: Path) -> None:
    pairs = ("--keep-from", "base", "ids", "--keep-from", "one", "lm_*")
    outcome = merge("one", "two", "--base", "base", "-m", "average", *pairs, "-o", "out")
    assert torch.equal(tensors("out")["lm_head.weight"], tensors("one")["lm_head.weight"])
    assert "note: copied unmerged from base: 1 tensors (`ids`)" in outcome.err
    plan = merge("one", "two", "--base", "base", "-m", "average", *pairs, "-o", "new", "--dry-run")
    assert "copied unmerged" in plan.out
    again = merge("--recipe", "out/model.safetensors", "one", "two", "--base", "base", "-o", "again")
    assert again.paths == ["again"]
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_a_folder_that_lacks_tensors_is_a_warning_whose_hint_works(here: Path) -> None:
    for number, options in enumerate((["--include", "layers.*.attn.*"], ["--exclude", "*head*", "--exclude", "ids"])):
        outcome = merge("one", "two", "-m", "average", "-o", f"out{number}", *options)
        warning = next(line for line in outcome.err.splitlines() if line.startswith("warning: the folder lacks"))
        hint = shlex.split(warning.split("`")[-2])
        assert "--keep-from" in hint
        outcome = merge("one", "two", "-m", "average", "-o", f"whole{number}", *options, *hint)
        assert "lacks" not in outcome.err
        assert tensors(f"whole{number}").keys() == tensors("one").keys()
        assert "lacks" not in merge("one", "two", "-m", "average", "-o", f"{number}.safetensors", *options).err


def test_the_hint_on_integers_that_differ_works(here: Path) -> None:
    complaint = refused(4, "merge", "one", "two", "-m", "average", "-o", "out").err
    hint = re.search(r"`(--keep-from .*?)`", complaint)
    assert hint is not None
    merge("one", "two", "-m", "average", "-o", "out", *shlex.split(hint[1]))
    assert tensors("out")["ids"].item() == SEEDS["two"]


def test_the_hint_on_shapes_that_differ_works(here: Path) -> None:
    odd = tensors("two") | {"lm_head.weight": torch.ones(2, 4), "ids": torch.tensor([1])}
    save_file(odd, "two/model.safetensors")
    for base in ([], ["--base", "base"]):
        complaint = refused(4, "merge", "one", "two", "-m", "average", "-o", "out", *base).err
        hint = re.search(r"--keep-from \w+ '[^']*'", complaint)
        assert hint is not None
        assert "--exclude" in complaint
        outcome = merge("one", "two", "-m", "average", "-o", f"out{len(base)}", *base, *shlex.split(hint[0]))
        assert tensors(outcome.paths[0]).keys() == odd.keys()


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        ([("nobody", "*")], UsageError),
        ([("base", "nothing*")], UsageError),
        ([("base", "*")], Mismatch),
        (["base"], UsageError),
        ([("base", 3)], UsageError),
        ([("base", "")], UsageError),
    ],
)
def test_pairs_that_mean_nothing_are_refused(here: Path, pairs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        taskmerge.merge(["one", "two"], base="base", method="average", output="out", keep_from=pairs)


def test_what_the_named_input_lacks_is_refused(here: Path) -> None:
    few = {name: tensor for name, tensor in tensors("base").items() if not name.startswith("layers.2")}
    save_file(few, "base/model.safetensors")
    with pytest.raises(Mismatch, match=r"layers\.2\.attn"):
        taskmerge.merge(["one", "two"], base="base", method="average", keep_from=[("base", "layers.*"), ("one", "ids")])


@pytest.mark.parametrize("kind", ["own", "other"])
def test_what_only_the_base_has_is_missed_where_the_configuration_is_its(here: Path, kind: str) -> None:
    for name in ("one", "two"):
        few = {tensor: value for tensor, value in tensors(name).items() if not tensor.startswith(("embed", "ids"))}
        save_file(few, f"{name}/model.safetensors")
        Path(name, "config.json").write_text(json.dumps({"model_type": kind}))
    options = ("one", "two", "--base", "base", "-m", "task_arithmetic")
    outcome = merge(*options, "-o", "out")
    assert ("warning: the folder lacks 2 tensors" in outcome.err) == (kind == "own")
    pairs = ("--keep-from", "base", "embed.weight", "--keep-from", "base", "ids")
    assert "lacks" not in merge(*options, *pairs, "-o", "whole").err
    assert tensors("whole").keys() == tensors("base").keys()
    assert taskmerge.verify("whole").same_file
