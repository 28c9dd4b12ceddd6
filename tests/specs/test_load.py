"""Recipes: strict keys, places in every complaint, numbers as they were written."""

from pathlib import Path

import pytest

from taskmerge.errors import BadFile, UsageError
from taskmerge.specs.load import load_overrides, load_recipe, load_weights, parse_recipe


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_whole_recipe(tmp_path: Path) -> None:
    text = """
taskmerge: 1
method: cart
options:
  rank: 1.0
  coefficient: [0.5, 1e-1]
weights: {cars: 2}
experts:
  cars: cars.safetensors
base: base.safetensors
output: out.safetensors
qkv: fused
also: [conv, projection]
exclude: head.*
lines: false
seed: 3
"""
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.shape == {
        "method": "cart",
        "qkv": "fused",
        "also": ("conv", "projection"),
        "exclude": ("head.*",),
        "lines": False,
        "seed": 3,
    }
    assert recipe.options == {"rank": "1.0", "coefficient": ["0.5", "1e-1"]}, "1.0 is not 1"
    assert recipe.weights == {"cars": 2.0}
    assert recipe.experts == {"cars": "cars.safetensors"}
    assert (recipe.base, recipe.output) == ("base.safetensors", "out.safetensors")
    assert recipe.places["options.rank"].endswith("recipe.yaml:5:3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank: 8", "8"),
        ("rank: 08", "08"),
        ("rank: '0.10'", "0.10"),
        ("rank: 0.1:1.0:0.1", "0.1:1.0:0.1"),
        ("rank: 1:5:1", "1:5:1"),
        ("rank: ~", None),
    ],
)
def test_options_are_kept_as_they_were_written(tmp_path: Path, text: str, expected: str | None) -> None:
    """YAML would read 1:5:1 as a number to the base 60."""
    assert load_recipe(written(tmp_path, f"options:\n  {text}\n")).options == {"rank": expected}


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("methd: cart\n", "1:1", "did you mean `method`?"),
        ("method: cart\n  bad: indent\n", "2:6", "this is no YAML"),
        ("method: cart\n\tx: 1\n", "2:1", "this is no YAML"),
        ("a: &x [*x]\n", "1:4", "this value cannot be read"),
        ("method: cart\n---\nmethod: ties\n", "2:1", "this is no YAML"),
        ("weights:\n  cars: 1\n  cars: 2\n", "3:3", "stands twice"),
        ("weights:\n  cars: true\n", "2:3", "is a number"),
        ("threads: 3\n", "1:1", "give --threads on the command line"),
    ],
)
def test_complaints_name_line_and_column(tmp_path: Path, text: str, place: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(written(tmp_path, text))
    assert f"recipe.yaml:{place}" in str(caught.value)
    assert says in str(caught.value)


def test_a_recipe_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(BadFile, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UsageError, match="no YAML"):
        load_recipe(tmp_path / "bytes.yaml")


def test_plain_values_from_a_file_s_metadata() -> None:
    recipe = parse_recipe(
        {"taskmerge": 1, "method": "ties", "options": {"density": 0.2, "coefficient": None}}, "x.safetensors"
    )
    assert recipe.shape == {"method": "ties"}
    assert recipe.options == {"density": 0.2, "coefficient": None}
    with pytest.raises(UsageError, match=r"x\.safetensors: unknown key `futuristic`"):
        parse_recipe({"futuristic": 1}, "x.safetensors")


def test_overrides() -> None:
    found = load_overrides(
        ["rank=1.0", "options.coefficient=0.1,0.2", "qkv=fused", "also=conv,projection", "lines=true", "drop-top=0"]
    )
    assert found == {
        "rank": "1.0",
        "coefficient": "0.1,0.2",
        "qkv": "fused",
        "also": ("conv", "projection"),
        "lines": True,
        "drop_top": "0",
    }
    assert load_overrides(["base=a/b", "strip-prefix=x."]) == {"base": Path("a/b"), "strip_prefix": "x."}
    for bad in ("rank", "=1", "taskmerge=1", "weights=1", "qvk=fused", "lines=perhaps"):
        with pytest.raises(UsageError, match="--set"):
            load_overrides([bad])


def test_weights_from_yaml_and_json(tmp_path: Path) -> None:
    assert load_weights(written(tmp_path, "a: 1\nb: -0.5\nc: 1e-1\n")) == {"a": 1.0, "b": -0.5, "c": 0.1}
    assert load_weights(written(tmp_path, '{"a": 1, "b": 2.5}')) == {"a": 1.0, "b": 2.5}
    with pytest.raises(UsageError, match=r"recipe\.yaml:2:1: the weight of `b`"):
        load_weights(written(tmp_path, "a: 1\nb: x\n"))
