"""`~` where no shell expands it: in options, names, quoted globs, suites and recipes."""

from pathlib import Path

import pytest
import torch
from merge_cases import refused, run
from safetensors.torch import load_file, save_file

from taskmerge.cli.app import homes


@pytest.fixture
def home(here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a base and two experts; the working directory is another one."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for number, name in enumerate(("base", "a", "b")):
        save_file({"w.weight": torch.full((2, 2), float(number))}, home / f"{name}.safetensors")
    return home


@pytest.mark.parametrize(
    "words",
    [
        ("--base=~/base.safetensors", "~/a.safetensors", "~/b.safetensors"),
        ("--base", "~/base.safetensors", "a=~/a.safetensors", "b=~/b.safetensors"),
        ("--base=~/base.safetensors", "~/[ab].safetensors"),
        ("--recipe", "~/recipe.yaml"),
        ("--recipe", "away.yaml"),
    ],
)
def test_every_path_may_start_at_home(home: Path, here: Path, words: tuple[str, ...]) -> None:
    named = "experts: [~/a.safetensors, b=~/b.safetensors]\nbase: ~/base.safetensors\n"
    (here / "away.yaml").write_text(f"method: task_arithmetic\n{named}", encoding="utf-8")
    (home / "recipe.yaml").write_text(
        "method: task_arithmetic\nexperts: [a.safetensors, b.safetensors]\nbase: ~/base.safetensors\n", encoding="utf-8"
    )
    outcome = run("merge", "-m", "task-arithmetic", "--coefficient", "1", *words, "-o", "~/merged.safetensors")
    assert (outcome.code, outcome.out) == (0, f"{home}/merged.safetensors\n"), outcome.err
    assert load_file(home / "merged.safetensors")["w.weight"].eq(3).all()
    assert [path.name for path in here.iterdir()] == ["away.yaml"], "no folder is called ~"


def test_a_suite_may_name_paths_at_home(home: Path, here: Path) -> None:
    (here / "suite.yaml").write_text(
        """taskmerge: 1
backbone: {library: open_clip, model: ~/model.json}
base: ~/base.safetensors
tasks:
  a: {expert: ~/a.safetensors, head: ~/head.safetensors, classes: [x, y], data: {test: {folder: ~/data}}}
  b: {expert: ~/b.safetensors, head: ~/head.safetensors, classes: [x, y], data: {test: {file: ~/b.npz, x: x, y: y}}}
""",
        encoding="utf-8",
    )
    outcome = run("merge", "-m", "average", "--suite", "suite.yaml", "-o", "merged.safetensors")
    assert outcome.code == 0, outcome.err
    refused(3, "eval", "merged.safetensors", "--suite", "suite.yaml", says=(str(home),))


def test_what_is_no_home_stays() -> None:
    words = ["~", "a~/b", "--map", "x~/* = y*", "~user/x", "--base=a~/x"]
    assert homes(words) == words
