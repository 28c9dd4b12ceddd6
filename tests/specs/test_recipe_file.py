"""A recipe as a file: whatever tasks and paths are called, it reads back as it was meant."""

from pathlib import Path

import pytest
import yaml

from taskmerge.errors import UsageError
from taskmerge.numerics.rank import Rank
from taskmerge.specs.load import load_overrides, load_recipe, parse_recipe
from taskmerge.specs.merge import MergeSpec
from taskmerge.specs.recipe_file import recipe_text

SPEC = MergeSpec(method="cart", qkv="fused", options={"rank": (Rank.parse("0.08"),)}, weights={"no": 2.0})


def test_it_reads_back(tmp_path: Path) -> None:
    experts = {"no": tmp_path / "a b.safetensors", "1": tmp_path / "deep" / "ü: x", "null": tmp_path / "#"}
    text = recipe_text(SPEC.recipe({"rank": Rank.parse("0.08")}), experts, tmp_path / "base", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert recipe.experts == {"no": "../a b.safetensors", "1": "../deep/ü: x", "null": "../#"}
    assert recipe.base == "../base"
    assert recipe.shape == {"method": "cart", "qkv": "fused"}
    assert recipe.weights == {"no": 2.0}
    assert dict(recipe.options) == {"rank": "0.08", "coefficient": "1.0"}  # spelled as it was written


def test_the_same_contents_give_the_same_text(tmp_path: Path) -> None:
    recipe = SPEC.recipe({})
    experts = {"b": Path("b"), "a": Path("a")}
    text = recipe_text(recipe, experts, None, tmp_path)
    again = recipe_text(dict(reversed(recipe.items())), dict(reversed(experts.items())), None, tmp_path)
    assert again == text
    assert "base" not in yaml.safe_load(text)


def test_links_in_the_folders_own_path_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "a").write_text("found")
    text = recipe_text({"method": "cart"}, {"a": tmp_path / "a"}, None, tmp_path / "link" / "out")
    place = tmp_path / "link" / "out"
    place.mkdir()
    assert (place / yaml.safe_load(text)["experts"]["a"]).read_text() == "found"


def test_what_was_learnt_is_said_by_its_digest_alone() -> None:
    assert parse_recipe({"learned": "sha256:1"}, "here").shape == {"learned": "sha256:1"}
    with pytest.raises(UsageError, match="`learned` is a text"):
        parse_recipe({"learned": 3}, "here")
    with pytest.raises(UsageError, match="unknown recipe key or option `learned`"):
        load_overrides(["learned=sha256:1"])
    with pytest.raises(UsageError, match="`learned` is what adaptation has learnt"):
        MergeSpec(learned="sha256:1")
