"""The Python functions take what the commands take: the same names, the same readers, typed; and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_overloads

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskmerge
from taskmerge.cli.adapt_words import AdaptWords
from taskmerge.cli.eval_words import EvalWords
from taskmerge.cli.merge_words import MergeWords
from taskmerge.cli.vectors import VectorsWords
from taskmerge.cli.verify import VerifyWords
from taskmerge.methods.options import Grid, Value
from taskmerge.methods.registry import methods

PRINTING = {"json", "quiet", "debug"}
FUNCTIONS: dict[str, Callable[..., object]] = {
    name: function for name in taskmerge.__all__ if callable(function := getattr(taskmerge, name)) and name.islower()
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and two experts, where everything runs."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"h.0.fc.weight": (6, 4), "h.1.fc.weight": (6, 4), "wte.weight": (9, 4), "norm": (3,)}
        save_file(
            {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}, f"{name}.safetensors"
        )
    return tmp_path


# --- the same names --------------------------------------------------------------------------------------------


def parameters(name: str) -> set[str]:
    """What a function can be told by name, options of methods left aside."""
    given = signature(FUNCTIONS[name]).parameters.values()
    return {parameter.name for parameter in given if parameter.kind != Parameter.VAR_KEYWORD}


def words(command: type) -> set[str]:
    return {field.name for field in fields(command)}


@pytest.mark.parametrize(
    ("name", "command", "of_the_shell", "of_python"),
    [
        # --set overrides a recipe, as every keyword does; digests=False is --no-digest, weights are --weight
        ("merge", MergeWords, {"set", "weight", "no_digest"}, {"weights", "digests", "progress", "note"}),
        ("vectors", VectorsWords, set(), {"progress"}),
        (
            "adapt", AdaptWords, {"no_cache", "no_scores", "page"},
            {"scores", "note", "max_memory", "shard_size", "skip_input", "keep_base", "svd"},
        ),
        ("verify", VerifyWords, {"file", "no_replay"}, {"path", "replay", "progress"}),
    ],
)  # fmt: skip
def test_a_function_takes_what_its_command_takes(
    name: str, command: type, of_the_shell: set[str], of_python: set[str]
) -> None:
    assert parameters(name) == (words(command) - PRINTING - of_the_shell) | of_python


def test_eval_is_evaluate_and_rank() -> None:
    files = {"csv", "markdown", "output", "clip_benchmark", "overwrite", "no_cache"}  # how a report is shown
    judged = {"fail_under", "fail_over", "tolerance"}  # what a command may end with
    taken = parameters("evaluate") | parameters("rank") - {"by"} | {"rank_by"}
    assert words(EvalWords) - PRINTING - files - judged == taken - {"progress", "manifests", "note"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_is_no_option_of_a_method_has_a_name_and_a_type(name: str) -> None:
    for parameter in signature(FUNCTIONS[name]).parameters.values():
        assert parameter.annotation not in (Parameter.empty, Any), parameter
        assert parameter.kind != Parameter.VAR_POSITIONAL
        if parameter.kind == Parameter.VAR_KEYWORD:
            assert (name, parameter.name) in {("merge", "options"), ("adapt", "options")}
            assert parameter.annotation in (Grid, Value)


@pytest.mark.parametrize("name", ["merge", "adapt"])
def test_every_way_to_call_a_function_takes_the_same(name: str) -> None:
    """Overloads say what comes back; but for what decides that, they say what the function itself says."""
    whole = signature(FUNCTIONS[name]).parameters
    decides = {"merge": {"inputs", "output", "dry_run"}, "adapt": {"dry_run", "seeds"}}[name]
    overloads = [signature(way).parameters for way in get_overloads(FUNCTIONS[name])]
    assert len(overloads) == 3
    for way in overloads:
        assert way.keys() == whole.keys()
        for parameter in way.values():
            if parameter.name not in decides:
                assert parameter.annotation == whole[parameter.name].annotation, parameter


def test_options_of_methods_do_not_stand_in_the_way_of_keywords() -> None:
    own = {name for method in methods().values() for name in method.settings}
    assert not own & parameters("merge")


# --- the same readers ------------------------------------------------------------------------------------------


SAME: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({"max_memory": "8G"}, ["--max-memory", "8G"]),
    ({"max_memory": 8_000_000_000}, ["--max-memory", "8G"]),
    ({"shard_size": "1KiB"}, ["--shard-size", "1KiB"]),
    ({"shard_size": 1024}, ["--shard-size", "1KiB"]),
    ({"also": "projection, embedding"}, ["--also", "projection,embedding"]),
    ({"also": ["embedding"], "rank": "1,2"}, ["--also", "embedding", "--rank", "1,2"]),
    ({"rank": [0.25, 2], "coefficient": 0.5}, ["--rank", "0.25,2", "--coefficient", "0.5"]),
    ({"coefficient": "0.5:1.0:0.5"}, ["--coefficient", "0.5:1.0:0.5"]),
    ({"dtype": torch.bfloat16}, ["--dtype", "bfloat16"]),
    ({"dtype": "half", "compute_dtype": "float64"}, ["--dtype", "fp16", "--compute-dtype", "float64"]),
    ({"include": "h.*"}, ["--include", "h.*"]),
    ({"exclude": ["norm", "wte.*"]}, ["--exclude", "norm", "--exclude", "wte.*"]),
    ({"keep_from": [("a", "norm")]}, ["--keep-from", "a", "norm"]),
    ({"keep_from": ["a=norm"]}, ["--keep-from", "a=norm"]),
    ({"map": "h.* = layers.*"}, ["--map", "h.* = layers.*"]),
    ({"weights": {"a": 2}}, ["--weight", "a=2"]),
    ({"coefficients": "weights.yaml"}, ["--coefficients", "weights.yaml"]),
    ({"coefficients": Path("weights.yaml"), "weights": {"b": 3}}, ["--coefficients=weights.yaml", "--weight", "b=3"]),
    ({"recipe": "recipe.yaml"}, ["--recipe", "recipe.yaml"]),
    ({"recipe": {"method": "ties", "options": {"density": 0.5}}}, ["--method", "ties", "--density", "0.5"]),
    ({"recipe": {"method": "ties"}, "method": "cart"}, ["--method", "cart"]),
    ({"threads": 1, "seed": 3, "digests": False}, ["--threads", "1", "--seed", "3", "--no-digest"]),
    ({"method": "dare", "then": "ties", "lines": True}, ["--method", "dare", "--then", "ties", "--lines"]),
    ({"skip_input": "b.*", "method": "average"}, ["--skip-input", "b.*", "--method", "average"]),
    ({"device": torch.device("cpu")}, ["--device", "cpu"]),
)  # fmt: skip


@pytest.mark.parametrize(("keywords", "arguments"), SAME, ids=lambda value: str(value)[:40])
def test_keywords_mean_what_options_mean(here: Path, keywords: dict[str, Any], arguments: list[str]) -> None:
    from taskmerge.cli.app import run

    (here / "weights.yaml").write_text("a: 0.5\n")
    (here / "recipe.yaml").write_text("method: task_arithmetic\noptions: {coefficient: 0.2}\n")
    inputs = ["base.safetensors", "a.safetensors", "b.safetensors"]
    receipt = taskmerge.merge(inputs, output="python/m.safetensors", **keywords)
    assert run(["merge", "--quiet", *inputs, "-o", "shell/m.safetensors", *arguments]) == 0
    for folder in ("python", "shell"):
        assert (here / folder).is_dir()
    written = sorted(path.name for path in (here / "python").iterdir())
    assert written == sorted(path.name for path in (here / "shell").iterdir())
    assert all((here / "python" / name).read_bytes() == (here / "shell" / name).read_bytes() for name in written)
    assert {Path(path).name for path in receipt.paths} <= set(written)


def test_a_keyword_stands_over_the_recipe_even_where_it_says_no(here: Path) -> None:
    recipe = {"method": "task_arithmetic", "lines": True, "options": {"beta": 0.25}, "experts": {"a": "a.safetensors"}}
    with pytest.raises(taskmerge.TaskmergeError, match="has no option `--beta`"):
        taskmerge.merge(recipe=recipe, base="base.safetensors", lines=False, dry_run=True)
    plan = taskmerge.merge(recipe=recipe, base="base.safetensors", dry_run=True)
    assert plan.options["--beta"] == "0.25"
    assert plan.tasks == ("a",)


def test_a_plan_is_what_the_command_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from taskmerge.cli.app import run

    inputs = ["base.safetensors", "a.safetensors", "b.safetensors"]
    plan = taskmerge.merge(inputs, method="ties", dry_run=True)
    assert run(["merge", *inputs, "--method", "ties", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    differs = {"memory"}  # of this process, which grows
    assert {**printed, **dict.fromkeys(differs)} == {**json.loads(json.dumps(plan.to_dict())), **dict.fromkeys(differs)}
    assert not list(here.glob("merged*"))
    (here / "merged-ties.safetensors").touch()
    with pytest.raises(taskmerge.TaskmergeError, match="merged-ties") as caught:
        taskmerge.merge(inputs, method="ties", dry_run=True)
    assert caught.value.exit_code == 6


# --- every wrong value -----------------------------------------------------------------------------------------


WRONG: tuple[object, ...] = (
    True, False, 0, 1, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "x", "1e400", "\ud800", "a\0b",
    "\x1b[31m", "x" * 9000, b"x", [], [None], ["x"], [["x"]], [1, 2], {}, {"x": 1}, {1: "x"}, {"x": None},
    {"a": {"b": {}}}, ("a", "b", "c"), object(), torch.ones(2), set(), print, int,
)  # fmt: skip
FREE = {"dry_run", "progress", "note"}


def refused(call: Callable[[], object]) -> None:
    """A call that works, or ends with a message of its own."""
    error = None
    try:
        call()
    except taskmerge.TaskmergeError as caught:
        error = caught
    assert error is None or error.exit_code in (2, 3, 4, 5, 6), error
    assert error is None or len(error.message) < 20_000
    assert error is None or all(line.isprintable() for line in error.message.split("\n"))


@pytest.mark.parametrize("name", [*sorted(parameters("merge") - FREE), "rank", "unheard_of"])
def test_every_wrong_value_of_a_merge_is_named(here: Path, name: str) -> None:
    usual: dict[str, Any] = {"inputs": ["a.safetensors", "b.safetensors"], "base": "base.safetensors"}
    for value in WRONG:
        refused(lambda: taskmerge.merge(**{**usual, name: value}, dry_run=True))  # noqa: B023
    assert {path.name for path in here.iterdir()} == {"a.safetensors", "b.safetensors", "base.safetensors"}


@pytest.mark.parametrize("name", sorted(parameters("vectors") - FREE))
def test_every_wrong_value_of_vectors_is_named(here: Path, name: str) -> None:
    usual: dict[str, Any] = {"inputs": ["a.safetensors"], "base": "base.safetensors", "output": "v", "overwrite": True}
    for value in WRONG:
        refused(lambda: taskmerge.vectors(**{**usual, name: value}))  # noqa: B023


def test_names_that_are_no_keyword_are_python_s_own_complaint(here: Path) -> None:
    for function in ("vectors", "evaluate", "verify", "rank", "rebuild", "diff", "inspect"):
        with pytest.raises(TypeError, match="max_memroy"):
            FUNCTIONS[function]("a.safetensors", max_memroy="2G")
    with pytest.raises(taskmerge.TaskmergeError, match="did you mean `--max-memory`") as caught:
        taskmerge.merge(["a.safetensors"], max_memroy="2G")
    assert caught.value.exit_code == 2


# --- types, as checkers see them -------------------------------------------------------------------------------


TYPED = """
from typing import assert_type

import torch
from torch import Tensor, nn

import taskmerge

state: dict[str, Tensor] = nn.Linear(2, 2).state_dict()
assert_type(taskmerge.merge({"a": state, "b": state}, base=state, method="cart", rank=0.08), dict[str, Tensor])
assert_type(taskmerge.merge({"a": state}, output="x.safetensors"), taskmerge.MergeReceipt)
assert_type(taskmerge.merge(["a", "b"], max_memory="2G", also="projection"), taskmerge.MergeReceipt)
assert_type(taskmerge.merge({"a": "a.safetensors"}, rank=[0.04, 0.08], dtype=torch.bfloat16), taskmerge.MergeReceipt)
assert_type(taskmerge.merge("*.safetensors", recipe={"method": "ties"}, dry_run=True), taskmerge.MergePlan)
assert_type(taskmerge.adapt(suite="s.yaml", iterations=3, coefficient=0.3), taskmerge.AdaptReceipt)
taskmerge.merge(["a"], qkv="fuse")  # wrong
taskmerge.merge(["a"], threads="4")  # wrong
taskmerge.merge(["a"], include=3)  # wrong
taskmerge.merge([state])  # wrong
taskmerge.vectors(["a"], max_memroy="2G")  # wrong
taskmerge.evaluate(["a"])  # wrong
taskmerge.adapt(objective="entropie")  # wrong
"""


@pytest.mark.slow
def test_type_checkers_see_what_goes_in_and_what_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "typed.py"
    script.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    wrong = {number for number, line in enumerate(TYPED.split("\n"), start=1) if line.endswith("# wrong")}
    complained = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert complained == wrong, done.stdout + done.stderr


def test_evaluate_takes_state_dicts(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[1] / "examples" / "tiny"
    state = load_file(tiny / "digits.safetensors")
    chosen: dict[str, Any] = {"suite": tiny, "tasks": "digits, shapes", "limit": 20}
    held = taskmerge.evaluate({"mine": state}, **chosen)
    file = taskmerge.evaluate({"mine": tiny / "digits.safetensors"}, **chosen)
    assert [(row.task, row.score) for row in held.rows] == [(row.task, row.score) for row in file.rows]
