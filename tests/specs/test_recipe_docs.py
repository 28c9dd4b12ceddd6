"""docs/recipes.md keeps its word: its recipe runs, and its table has every key and what runs where none is said."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

import taskmerge
from taskmerge.cli.app import run
from taskmerge.methods.registry import DEFAULT, methods
from taskmerge.specs.load import FORMAT, KEYS, load_recipe, parse_recipe
from taskmerge.specs.merge import CHOICES, FINISH, WIDENING, MergeSpec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
TABLE = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", PAGE, flags=re.MULTILINE))
WRITTEN = {"grid", "learned"}  # by taskmerge itself


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the example, with the recipe in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "recipe.yaml").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_runs_and_is_found_in_what_it_makes(here: Path) -> None:
    receipt = taskmerge.merge(recipe="recipe.yaml")
    assert receipt.paths == ("merged.safetensors",)
    with safe_open("merged.safetensors", "pt") as file:
        assert "visual.conv1.weight" not in file.keys()  # noqa: SIM118
        assert str(file.get_tensor("visual.proj").dtype) == "torch.float16"
    said, ran = yaml.safe_load(EXAMPLE), receipt.provenance["recipe"]
    assert {key for key in said if ran.get(key) != said[key]} == {
        "dtype", "options", "compute_dtype", "svd", "on_buffer", "heads", "experts", "base", "output",
    }  # fmt: skip
    assert {**ran["options"], **said["options"]} == ran["options"]
    assert ran["options"]["coefficient"] == 1.0  # --lines scales in its place
    assert ran["dtype"] == "F16"


def test_the_command_and_a_mapping_do_the_same(here: Path) -> None:
    taskmerge.merge(recipe="recipe.yaml")
    assert run(["merge", "--recipe", "recipe.yaml", "-o", "shell.safetensors", "--quiet"]) == 0
    taskmerge.merge(recipe=yaml.safe_load(EXAMPLE), output="mapping.safetensors")
    taskmerge.merge(["examples/tiny"], recipe="merged.safetensors", output="replay.safetensors")
    (made,) = {Path(f"{name}.safetensors").read_bytes() for name in ("merged", "shell", "mapping", "replay")}
    assert made
    assert taskmerge.verify("merged.safetensors", ["examples/tiny"]).same_file


def test_every_key_is_explained_and_shown() -> None:
    told = [name for cell in TABLE for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(told) == sorted(KEYS)
    shown = set(yaml.safe_load(EXAMPLE))
    assert KEYS - shown == WRITTEN | {"strip_prefix", "map", "config_from", "tokenizer_from"}


def test_what_runs_where_nothing_is_said() -> None:
    usual = {name: row.split(" | ")[1] for cell, row in TABLE.items() for name in re.findall(r"`(\w+)`", cell)}
    plain = MergeSpec()
    for name in (*CHOICES, "method", "seed"):
        assert usual[name] == str(getattr(plain, name)), name
    assert (usual["method"], usual["then"], usual["taskmerge"]) == (DEFAULT, FINISH, str(FORMAT))
    for field in fields(MergeSpec):
        assert field.name in usual or field.name == "learned"
    told = {name: row.split(" | ")[0] for cell, row in TABLE.items() for name in re.findall(r"`(\w+)`", cell)}
    for name, choices in CHOICES.items():
        assert set(re.findall(r"[\w-]+", told[name])) - {"or"} == set(choices), name
    assert told["also"] == ", ".join(WIDENING)


@pytest.mark.parametrize(
    ("method", "name"), [(method.name, name) for method in methods().values() for name in method.settings]
)
def test_an_option_at_the_top_is_told_where_it_belongs(here: Path, method: str, name: str) -> None:
    for spelled in {name, name.replace("_", "-")}:
        Path("wrong.yaml").write_text(f"method: {method}\n{spelled}: 0.25\n")
        with pytest.raises(taskmerge.TaskmergeError, match=f"wrong.yaml:2:1: unknown key `{spelled}`") as caught:
            load_recipe(Path("wrong.yaml"))
        assert caught.value.exit_code == 2
        (advice,) = re.findall(r"`(options: \{.*\})`", str(caught.value.hint))
        assert parse_recipe({"method": method, **yaml.safe_load(advice)}, "here").options == {name: 0.25}
