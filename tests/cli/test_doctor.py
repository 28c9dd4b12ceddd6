"""`taskmerge doctor`: what it finds is what a merge does, what it proposes runs, and how it prints."""

import json
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from doctor_cases import TROUBLES, World, a_file_that_was_cut, world
from merge_cases import Outcome, load, model, refused, run, save, tree

import taskmerge
from taskmerge.checkpoint.checkpoint import Checkpoint
from taskmerge.diagnosis.report import schema
from taskmerge.errors import TaskmergeError

Files = dict[str, Path]
Document = dict[str, Any]
CHECK = jsonschema.Draft202012Validator(schema())


def doctor(*arguments: object, code: int = 0) -> Outcome:
    """A diagnosis that must end with `code`, having printed its page and no error."""
    outcome = run("doctor", *arguments)
    assert outcome.code == code, outcome.out + outcome.err
    assert outcome.err == ""
    return outcome


def document(*arguments: object, code: int = 0) -> Document:
    found: Document = json.loads(doctor(*arguments, "--json", code=code).out)
    CHECK.validate(found)
    assert found["exit_code"] == code
    return found


def words(found: Document, level: str) -> str:
    return " ".join(f"{one['where']}: {one['what']} {one['hint']}" for one in found["findings"] if one["level"] == level)


def carried_out(found: Document) -> None:
    """Every proposed command goes through as it stands."""
    for one in found["commands"]:
        assert shlex.split(one["command"]) == one["arguments"]
        assert one["arguments"][:2] == ["taskmerge", "merge"]
        outcome = run(*one["arguments"][1:])
        assert outcome.code == 0, f"{one['command']}\n{outcome.err}"
        assert doctor(*experts_of(one["arguments"])).code == 0


def experts_of(arguments: list[str]) -> list[str]:
    """What a merge was told of its inputs, for `doctor`: without method and output."""
    given, left = arguments[2:-2], list[str]()
    while given:
        word = given.pop(0)
        if word in ("--method", "--qkv", "--also"):
            given.pop(0)
        else:
            left.append(word)
    return left


# --- whatever is wrong -----------------------------------------------------------------------------------------


def in_trouble(home: Path, seed: int) -> World:
    found, chance = world(home, seed), random.Random(seed)
    for trouble in chance.sample(TROUBLES, chance.choice((1, 1, 2, 3))):
        trouble(found)
    return found


def agrees_with_merge(home: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor says of any mixture of troubles against what merge does with the same inputs."""
    home.mkdir()
    monkeypatch.chdir(home)
    here = in_trouble(home, seed)
    before = tree(home)
    outcome = run("doctor", *here.arguments, "--json")
    assert tree(home) == before
    assert outcome.err == "", outcome.err
    found = json.loads(outcome.out)
    CHECK.validate(found)
    assert outcome.code == found["exit_code"]
    method = "task_arithmetic" if here.based else "cart"
    with_lora = [] if here.based or not here.more else here.more
    try:
        taskmerge.merge(
            [one for one in here.arguments if one not in ("--base", here.path("base").name)], method=method,
            base=here.path("base") if here.based else None, output=home / "by-hand",
        )  # fmt: skip
        error = None
    except TaskmergeError as stopped:
        error = stopped
    assert (outcome.code == 0) == (error is None), f"{found['findings']}\n{error}"
    if error is not None:
        said = [(one["what"], one["where"]) for one in found["findings"] if one["level"] == "refusal"]
        if error.exit_code != 7 and not any("NaN or infin" in what for what, _ in said) and not with_lora:
            assert (error.what, error.where) in said
        assert outcome.code == 3 or error.exit_code != 3
    carried_out(found)


@pytest.mark.parametrize("seed", range(12))
def test_it_says_what_merge_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    agrees_with_merge(tmp_path / "w", seed, monkeypatch)


@pytest.mark.slow
def test_it_says_what_merge_does_at_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(100, 500):
        try:
            agrees_with_merge(tmp_path / f"w{seed}", seed, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
