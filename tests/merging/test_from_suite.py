"""`merge --suite`: experts, base and qkv come from the suite wherever nothing else is said."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.checkpoint import ahead
from taskmerge.cli.app import run
from taskmerge.errors import BadFile, TaskmergeError, UsageError
from taskmerge.merging import from_suite as module
from taskmerge.merging.replay import replayed

D = 8
HEAD = """\
    head: zero_shot
    classes: [a, b]
    templates: ['a {}']
    data: {test: {file: d.npz, x: x, y: y}}
"""
BACKBONE = "backbone: {library: open_clip, model: ViT-B-32}\n"


def task(name: str, expert: str | None) -> str:
    line = f"    expert: {expert}\n" if expert else ""
    return f"  {name}:\n{line}{HEAD}"


def suite(path: Path, experts: dict[str, str | None], base: str | None = "start.safetensors", qkv: str = "") -> Path:
    """A suite of zero-shot tasks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base_line = f"base: {base}\n" if base else ""
    qkv_line = f"qkv: {qkv}\n" if qkv else ""
    tasks = "".join(task(name, expert) for name, expert in experts.items())
    path.write_text(f"taskmerge: 1\nname: small\n{BACKBONE}{base_line}{qkv_line}tasks:\n{tasks}")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/ with a base and three experts with fused attention, and a suite of them; an empty working directory."""
    folder = tmp_path / "models"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("start", "one", "two", "three"):
        weights = {
            "blocks.0.attn.in_proj_weight": torch.randn(3 * D, D, generator=generator),
            "blocks.0.mlp.weight": torch.randn(D, D, generator=generator),
        }
        save_file(weights, folder / f"{name}.safetensors")
    suite(folder / "suite.yaml", {"cats": "one.safetensors", "dogs": "two.safetensors", "owls": "three.safetensors"})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def merge(*arguments: object) -> int:
    return run(["merge", *map(str, arguments)])


def test_experts_by_task_and_base_are_the_suite_s(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The suite as a file, as its folder, and in Python: the bytes of the same inputs said one by one."""
    models = here / "models"
    tasks = {"cats": "one", "dogs": "two", "owls": "three"}
    assert merge("--suite", models / "suite.yaml", "-m", "ties", "-o", "a.safetensors") == 0
    said = capsys.readouterr()
    assert f"note: merging the 3 experts of {models / 'suite.yaml'}\n" in said.err
    assert f"note: the base is {models / 'start.safetensors'}, as {models / 'suite.yaml'} says" in said.err
    assert "3 experts (cats, dogs, owls)" in said.err
    assert merge("--suite", models, "-m", "ties", "-o", "b.safetensors") == 0
    taskmerge.merge(suite=models, method="ties", output="c.safetensors")
    plain = {name: models / f"{file}.safetensors" for name, file in tasks.items()}
    taskmerge.merge(plain, base=models / "start.safetensors", method="ties", output="d.safetensors")
    assert len({Path(f"{one}.safetensors").read_bytes() for one in "abcd"}) == 1


def test_inputs_that_are_given_are_the_experts(here: Path) -> None:
    models = here / "models"
    receipt = taskmerge.merge([models / "one.safetensors"], suite=models, method="task_arithmetic")
    assert [one["name"] for one in receipt.provenance["tasks"]] == ["one"]
    assert not any("merging the" in note for note in receipt.notes)


def test_the_base_is_the_option_s_then_the_suite_s_then_the_one_of_that_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = here / "models"
    (models / "three.safetensors").rename(models / "base.safetensors")
    inputs = str(models / "*.safetensors")
    assert merge(inputs, "--suite", models, "--dry-run", "-m", "ties") == 0
    said = capsys.readouterr().err
    start = models / "start.safetensors"
    assert f"{start} is the base (the base of {models / 'suite.yaml'}) and is not merged" in said
    assert "base.safetensors is merged as an expert, though it is named like a base" in said
    assert merge(inputs, "--suite", models, "--base", models / "two.safetensors", "--dry-run", "-m", "ties") == 0
    said = capsys.readouterr().err
    assert "two.safetensors is the base (--base)" in said
    assert "the base is" not in said
    suite(models / "suite.yaml", {"cats": "one.safetensors"}, base=None)
    assert merge(inputs, "--suite", models, "--dry-run", "-m", "ties") == 0
    assert "base.safetensors is the base (its name is `base`)" in capsys.readouterr().err


def test_qkv_is_the_suite_s_unless_it_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = here / "models"
    experts: dict[str, str | None] = {"cats": "one.safetensors", "dogs": "two.safetensors", "owls": "three.safetensors"}
    suite(models / "suite.yaml", experts, qkv="split")
    (here / "work" / "r.yaml").write_text("qkv: as-is\n")
    said = {}
    for name, arguments in {"suite": (), "option": ("--qkv", "fused"), "recipe": ("--recipe", "r.yaml")}.items():
        assert merge("--suite", models, "--rank", "2", *arguments, "-o", f"{name}.safetensors") == 0
        said[name] = "q, k and v are merged split, as" in capsys.readouterr().err
    assert said == {"suite": True, "option": False, "recipe": False}
    plain = [f"{task}={models / str(file)}" for task, file in experts.items()]
    for name, qkv in {"suite": "split", "option": "fused", "recipe": "as-is"}.items():
        assert merge(*plain, "--qkv", qkv, "--rank", "2", "-o", "plain.safetensors", "--overwrite") == 0
        found, wanted = load_file(f"{name}.safetensors"), load_file("plain.safetensors")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name


def test_a_suite_changes_nothing_in_a_replay(here: Path) -> None:
    models = here / "models"
    assert merge("--suite", models, "--rank", "2", "-o", "first.safetensors") == 0
    suite(models / "suite.yaml", {"cats": "two.safetensors"}, base="three.safetensors", qkv="split")
    assert merge("--recipe", "first.safetensors", models, "--suite", models, "-o", "again.safetensors") == 0
    assert Path("again.safetensors").read_bytes() == Path("first.safetensors").read_bytes()
    assert "qkv" not in replayed(Path("first.safetensors"), [models])[1]


def test_tasks_without_experts_are_named(here: Path) -> None:
    models = here / "models"
    suite(models / "suite.yaml", {"cats": "one.safetensors", "dogs": None, "owls": None})
    receipt = taskmerge.merge(suite=models, method="average")
    assert f"{models / 'suite.yaml'} names no expert of dogs, owls" in receipt.notes
    suite(models / "suite.yaml", {"dogs": None})
    with pytest.raises(UsageError, match="names no expert"):
        taskmerge.merge(suite=models, method="average", overwrite=True)


@pytest.mark.parametrize(
    ("said", "fetched"),
    [
        ({"method": "average"}, 8),
        ({"rank": 2}, 8),
        ({"method": "task_arithmetic"}, 9),
        ({"method": "dare", "then": "ties"}, 9),
        ({"method": "average", "on_missing": "base"}, 9),
    ],
)
def test_places_on_a_hub_are_fetched_once_and_the_base_only_where_it_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], fetched: int
) -> None:
    """A packaged suite of eight experts. CART is the default and works on differences from the experts' mean."""
    asked: list[str] = []

    def fetch(location: Any) -> Path:
        asked.append(str(location))
        return here / "models" / ("start.safetensors" if "openai" in str(location) else "one.safetensors")

    monkeypatch.setattr(module, "resolve", fetch)
    receipt = taskmerge.merge(suite="clip-vit-b-32-8", qkv="as-is", **said)
    assert len(receipt.provenance["tasks"]) == 8
    assert len(asked) == len(set(asked)) == fetched
    assert any("is not fetched" in note for note in receipt.notes) == (fetched == 8)


def test_task_vectors_among_the_inputs_need_the_base_whatever_merges_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = here / "models"
    (vector,) = taskmerge.vectors([models / "one.safetensors"], base=models / "start.safetensors").paths
    monkeypatch.setattr(module, "resolve", lambda location: models / "start.safetensors")
    given = module.from_suite("clip-vit-b-32-8", [vector], {"method": "average"})[1]
    assert given["base"] == models / "start.safetensors"
    plain = [models / "one.safetensors"]
    assert "base" not in module.from_suite("clip-vit-b-32-8", plain, {"method": "average"})[1]


def test_what_a_suite_names_is_digested_ahead_the_base_last(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Recorded(ahead.Ahead):
        def __init__(self, files: Sequence[Path]) -> None:
            asked.append([file.stem for file in files])
            super().__init__(files)

    monkeypatch.setattr(ahead, "Ahead", Recorded)
    models = here / "models"
    assert merge("--suite", models, "-o", "a.safetensors") == 0
    assert merge("--suite", models, models / "two.safetensors", "-o", "b.safetensors") == 0
    assert merge("--suite", models, "--no-digest", "-o", "c.safetensors") == 0
    assert asked == [["one", "two", "three", "start"], ["two"], []]


def test_the_suite_is_read_before_torch_is_imported(here: Path) -> None:
    """In a fresh process: what digests ahead has to start while torch is imported."""
    check = "import sys, pathlib; from taskmerge.cli import merge as m; s = m._loaded(pathlib.Path(sys.argv[1]))"
    check += "; assert len(m._places(s)) == 4 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check, str(here / "models")], check=True)


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ("nowhere.yaml", BadFile, "nowhere.yaml: no such file"),
        ("clip-vit-b-32", BadFile, "did you mean the packaged suite"),
        ("bad.yaml", UsageError, "bad.yaml:2:1"),
        ("lost.yaml", BadFile, "lost.safetensors: there is no such file"),
        ("baseless.yaml", BadFile, "lost.safetensors: there is no such file"),
    ],
)
def test_suites_that_cannot_be_used(here: Path, said: str, error: type[TaskmergeError], says: str) -> None:
    Path("bad.yaml").write_text("taskmerge: 1\ntask: {}\n")
    suite(Path("lost.yaml"), {"cats": "lost.safetensors"}, base=None)
    suite(Path("baseless.yaml"), {"cats": "../models/one.safetensors"}, base="lost.safetensors")
    with pytest.raises(error, match=says):
        taskmerge.merge(suite=said)


def test_a_suite_in_the_working_directory_is_not_taken_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "models" / "suite.yaml").rename("suite.yaml")
    assert merge("-m", "average") == 2
    assert "there is nothing to merge" in capsys.readouterr().err
