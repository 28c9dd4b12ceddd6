"""Methods of other packages: found, checked when they run, and no harm to anybody else when they are broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from merge_cases import merge, refused, run
from safetensors.torch import load_file

from taskmerge.methods import registry
from taskmerge.methods.listing import GROUP

Files = dict[str, Path]
Install = Callable[..., Path]

HEAD = """
from typing import Annotated

import torch

from taskmerge.methods.contract import method
from taskmerge.methods.options import Option

WORDS = {"title": "A method", "formula": "θ = …", "paper": "none"}
"""
MIDDLE = """
@method(space="weight", reads="elements", **WORDS)
def middle(stack, *, height: Annotated[float, Option("0: least, 1: most", low=0, high=1)] = 0.5):
    '''Between the least and the most.'''
    return torch.lerp(stack.amin(0), stack.amax(0), height)
"""
SUMMED = """
@method(space="weight", reads="elements", **WORDS)
def summed(stack):
    '''One number.'''
    return stack.sum()
"""
PROMOTED = """
@method(space="delta", reads="elements", gives="task_vectors", **WORDS)
def promoted(stack):
    '''Another type.'''
    return stack.double()
"""
UNSERVED = """
@method(space="weight", reads="elements", **WORDS)
def unserved(stack, alpha=0.5):
    '''Nobody hands alpha in.'''
    return stack[0]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package as pip lays it out: a module, and metadata with entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    registry._registry.cache_clear()

    def add(module: str, source: str, *, entry: str | None = None) -> Path:
        (site / f"{module}.py").write_text(HEAD + source, encoding="utf-8")
        about = site / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{GROUP}]\n{entry or f'{module} = {module}'}\n")
        return site

    yield add
    registry._registry.cache_clear()
    for name in ("their_middle", "their_summed", "their_promoted", "their_unserved", "their_typo", "their_ties"):
        sys.modules.pop(name, None)


def test_a_plug_in_is_a_method_like_any_other(experts: Files, install: Install) -> None:
    install("their_middle", MIDDLE)
    assert "Between the least and the most." in run("methods").out
    assert "--height  (number 0..1; default 0.5)" in run("methods", "middle").out
    merge("cars.safetensors", "dogs.safetensors", "-m", "middle", "--height", "0,1", "-o", "out.safetensors")
    cars, dogs = (load_file(f"{name}.safetensors")["proj"] for name in ("cars", "dogs"))
    for height, wanted in ((0, torch.minimum(cars, dogs)), (1, torch.maximum(cars, dogs))):
        assert torch.equal(load_file(f"out-height{height:.1f}.safetensors")["proj"], wanted)
    refused(2, "merge", "cars.safetensors", "-m", "middle", "--height", "2", says=("--height", "number 0..1"))


@pytest.mark.parametrize(
    ("source", "words", "says"),
    [
        (SUMMED, ["-m", "summed"], "the method `summed` gives [] float32 where"),
        (PROMOTED, ["-m", "promoted", "--base", "base.safetensors"], "the method `promoted` gives [1, "),
        (PROMOTED, ["-m", "promoted", "--then", "ties", "--base", "base.safetensors"], "the method `promoted` gives"),
    ],
)
def test_a_result_of_another_form_is_refused(
    experts: Files, install: Install, here: Path, source: str, words: list[str], says: str
) -> None:
    module = "their_summed" if source is SUMMED else "their_promoted"
    install(module, source)
    outcome = refused(2, "merge", "cars.safetensors", "dogs.safetensors", *words, says=(says, f"`{module}`"))
    assert "`blocks.0." in outcome.err  # a tensor
    assert not list(here.glob("merged*"))


BROKEN = [
    ("their_typo", "import torhc", "ModuleNotFoundError: No module named 'torhc'"),
    ("their_unserved", UNSERVED, "BadDeclaration: `unserved`, parameter `alpha`: nobody hands it to the kernel"),
    ("their_ties", MIDDLE.replace("middle", "ties"), "it declares the method `ties`, which exists already"),
    ("their_middle", "", "`their_middle` declares no method with @method"),
]


@pytest.mark.parametrize(("module", "source", "reason"), BROKEN, ids=[module for module, _, _ in BROKEN])
def test_a_broken_plug_in_harms_nobody_else(
    experts: Files, install: Install, module: str, source: str, reason: str
) -> None:
    install(module, source)
    warning = f"warning: the plug-in `{module}` of the package {module.replace('_', '-')} is left out: "
    words = ("merge", "cars.safetensors", "dogs.safetensors", "-m", "average", "--overwrite")
    for command in (("methods",), ("methods", "ties"), ("methods", "--json"), words, (*words, "--dry-run")):
        outcome = run(*command)
        assert outcome.code == 0
        assert outcome.err.count(warning) == 1
        assert reason in outcome.words
    assert "warning" not in run(*words, "--quiet").err
    assert run("verify", "merged-average.safetensors", "cars.safetensors", "dogs.safetensors").err.count(warning) == 1
    assert len([one for one in json.loads(run("methods", "--json").out) if one["command"] == "merge"]) == len(
        registry.methods()
    )


def test_asking_for_a_broken_plug_in_says_why(experts: Files, install: Install) -> None:
    install("their_typo", "import torhc", entry="my_method = their_typo")
    for words in (["-m", "my-method"], ["-m", "dare", "--then", "my_method", "--base", "base.safetensors"]):
        says = (
            "cannot be loaded: ModuleNotFoundError: No module named 'torhc'",
            "the package their-typo",
            words[-3 % 2],
        )
        refused(2, "merge", "cars.safetensors", "dogs.safetensors", *words, says=says[:2])
    refused(2, "methods", "my_method", says=("the method `my_method` cannot be loaded",))


def test_in_a_process_of_its_own(experts: Files, install: Install) -> None:
    """As a user has it: one good package, one that fails to import, both beside the program."""
    install("their_middle", MIDDLE)
    site = install("their_typo", "import torhc")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "taskmerge", "merge", "cars.safetensors", "dogs.safetensors", "-m", "middle"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "merged-middle.safetensors\n"
    assert done.stderr.count("the plug-in `their_typo` of the package their-typo is left out") == 1
