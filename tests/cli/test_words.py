"""A command's words: what Typer is told of them, how they are read, and that none of them is lost on the way."""

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
from merge_cases import refused, run

import taskmerge
from taskmerge.cli import adapting, evaluating, options
from taskmerge.cli.adapt_words import AdaptWords
from taskmerge.cli.eval_words import EvalWords
from taskmerge.cli.merge_words import MergeWords
from taskmerge.cli.vectors import PRINTING, VectorsWords
from taskmerge.cli.verify import VerifyWords
from taskmerge.cli.words import declared, flags_of, given_options
from taskmerge.errors import UsageError
from taskmerge.merging.options import KEYWORDS
from taskmerge.specs.adapt import AdaptSpec
from taskmerge.workflows.adapted import AdaptRunning

Files = dict[str, Path]
EVERY: list[type] = [AdaptWords, MergeWords, VectorsWords, EvalWords, VerifyWords]
REQUIRED: dict[type, dict[str, Any]] = {VectorsWords: {"inputs": ["a"]}, VerifyWords: {"file": Path("a")}}


def names(words: type) -> set[str]:
    return {field.name for field in fields(words)}


def value(words: type, name: str, given: object) -> object:
    """What the field `name` holds when Typer parsed `given`."""
    return next(declaration for declaration in declared(words) if declaration.name == name).value(given)


# --- no option is lost -----------------------------------------------------------------------------------------


def test_every_word_of_merge_is_a_keyword_or_used_by_the_command() -> None:
    own = {"inputs", "weight", "coefficients", "recipe", "set", "suite", "choose", "adapt_split", "limit", "no_digest"}
    assert names(MergeWords) - KEYWORDS == own | {"from_", "task", "dry_run", "json", "quiet", "debug"}


def test_every_word_of_adapt_is_a_keyword_or_used_by_the_command() -> None:
    own = {"inputs", "suite", "seeds", "budget", "no_cache", "no_scores", "page", "dry_run", "json", "quiet", "debug"}
    running = {field.name for field in fields(AdaptRunning)}
    assert names(AdaptWords) - adapting.KEYWORDS - running == own
    left_out = {"max_memory", "shard_size", "skip_input", "keep_base", "svd"}  # keywords of Python alone
    assert adapting.KEYWORDS - names(AdaptWords) == left_out


def test_words_of_adapt_have_the_defaults_of_its_spec() -> None:
    for field in fields(AdaptSpec):
        if field.name in names(AdaptWords) and field.name != "method":
            given, own = (getattr(words(), field.name) for words in (AdaptWords, AdaptSpec))
            assert given == own or (given is None and not own), field.name


def test_every_word_of_vectors_is_a_keyword_or_about_printing() -> None:
    assert signature(taskmerge.vectors).parameters.keys() - {"progress"} == names(VectorsWords) - set(PRINTING)


def test_every_word_of_eval_is_a_keyword_or_used_by_the_command() -> None:
    own = {"checkpoints", "suite", "rank_by", "adapt_split", "json", "markdown", "csv", "output", "clip_benchmark"}
    own |= {"overwrite", "fail_under", "fail_over", "baseline", "tolerance", "cache", "no_cache", "quiet", "debug"}
    assert names(EvalWords) - evaluating.KEYWORDS == own


@pytest.mark.parametrize("words", EVERY)
def test_what_was_not_said_is_absent(words: type) -> None:
    required = REQUIRED.get(words, {})
    assert given_options(words(**required)).keys() == required.keys()
    said = words(**{**required, "allow_pickle": True})
    assert given_options(said).keys() == {*required, "allow_pickle"}


def test_a_value_that_looks_like_no_value_was_said() -> None:
    words = VectorsWords(inputs=["a"], coefficient=0.0, include=["b"])
    assert given_options(words) == {"inputs": ("a",), "coefficient": 0.0, "include": ("b",)}


def test_a_coefficient_of_zero_gives_the_base_back(experts: Files, here: Path) -> None:
    outcome = run("vectors", "cars.safetensors", "--base", "base.safetensors", "--apply", "--coefficient", "0")
    assert outcome.code == 0, outcome.err
    assert taskmerge.diff(outcome.paths[0], "base.safetensors").same


# --- one declaration -------------------------------------------------------------------------------------------


def test_options_that_are_shared_are_declared_alike() -> None:
    """Every type of cli/options.py that two commands use under one name is one object, help text and reader."""
    shared = {id(get_args(kind)[1]) for kind in vars(options).values() if len(get_args(kind)) > 1}
    for name in ("threads", "max_memory", "allow_pickle", "quiet", "debug"):
        infos = {id(entry.info) for words in EVERY for entry in declared(words) if entry.name == name}
        assert len(infos) == 1, name
        assert infos <= shared, name


@pytest.mark.parametrize("words", EVERY)
def test_no_two_options_of_a_command_have_one_name(words: type) -> None:
    assert len(set(flags_of(words))) == len(flags_of(words))
    assert {"--json", "--quiet", "-q", "--debug"} <= set(flags_of(words))


# --- reading ---------------------------------------------------------------------------------------------------


def test_values_are_read_once_into_their_own_types() -> None:
    assert value(MergeWords, "max_memory", "2GiB") == 2 << 30
    assert value(MergeWords, "also", "projection, conv") == ("projection", "conv")
    assert value(MergeWords, "weight", ["cars=1.5", "dogs=-2"]) == {"cars": 1.5, "dogs": -2.0}
    assert value(VerifyWords, "threads", 3) == 3
    assert value(EvalWords, "tasks", None) is None
    assert value(MergeWords, "weight", []) is None
    assert value(MergeWords, "qkv", "fused") == "fused"


@pytest.mark.parametrize("words", [MergeWords, VectorsWords, VerifyWords])
@pytest.mark.parametrize(("name", "given", "says"), [
    ("threads", 0, "--threads: 0 threads cannot work"), ("max_memory", "many", "--max-memory: `many` is no size"),
    ("max_memory", "", "--max-memory: `` is no size"),
])  # fmt: skip
def test_commands_refuse_the_same_values_in_the_same_words(words: type, name: str, given: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        value(words, name, given)


@pytest.mark.parametrize("command", [["merge"], ["vectors", "--base", "base.safetensors"], ["verify"]])
def test_wrong_values_end_every_command_before_it_starts(experts: Files, here: Path, command: list[str]) -> None:
    name, *more = command
    for option, text in (("--threads", "0"), ("--max-memory", "2XB")):
        refused(2, name, "cars.safetensors", *more, option, text, folder=here, says=(f"{option}: ",))
    refused(2, "eval", "base", "--limit", "0", folder=here, says=("--limit: 0 items cannot be taken",))
