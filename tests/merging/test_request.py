"""One opening of every merge: what is said in a call stands above a recipe, a recipe above a suite."""

from pathlib import Path

import pytest

from taskmerge.errors import UsageError
from taskmerge.merging.options import GROUPS, KEYWORDS
from taskmerge.merging.request import Request, requested
from taskmerge.specs.suite_file import load_suite

TINY = Path(__file__).parents[2] / "examples" / "tiny"
SUITE = TINY / "suite.yaml"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with something of every kind in it."""
    path = tmp_path / "sub" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(
        "method: dare\nthen: ties\nseed: 3\nqkv: fused\nexclude: [logit_scale]\nweights: {digits: 2}\n"
        f"experts: {{digits: {TINY}/digits.safetensors, letters: {TINY}/letters.safetensors}}\n"
        "output: out.safetensors\noptions: {density: 0.5}\n"
    )
    return path


def test_without_recipe_and_suite_keywords_are_all_there_is() -> None:
    request = requested(["a.safetensors"], {"method": None, "rank": "0.1,0.2", "threads": 2, "base": "b", "seed": 4})
    assert request.inputs == ["a.safetensors"]
    assert (request.spec.method, request.spec.seed, len(request.spec.options["rank"])) == ("cart", 4, 2)
    assert (request.opening.base, request.running.threads, request.running.output) == (Path("b"), 2, None)


def test_a_recipe_says_what_keywords_do_not(recipe: Path) -> None:
    request = requested([], {"seed": 5, "overwrite": True}, recipe=recipe)
    spec = request.spec
    assert request.inputs == {name: TINY / f"{name}.safetensors" for name in ("digits", "letters")}
    assert (spec.method, spec.then, spec.seed, spec.qkv, spec.exclude) == ("dare", "ties", 5, "fused", ("logit_scale",))
    assert (spec.weights, spec.options) == ({"digits": 2.0}, {"density": (0.5,)})
    assert (request.running.output, request.running.overwrite) == (recipe.parent / "out.safetensors", True)


def test_keywords_stand_above_the_recipe(recipe: Path) -> None:
    said = {"density": 0.25, "qkv": "split", "weights": {"letters": 3.0}, "output": "mine.safetensors"}
    request = requested(["a.safetensors"], said, recipe=recipe)
    assert request.inputs == ["a.safetensors"]
    assert (request.spec.options, request.spec.qkv) == ({"density": (0.25,)}, "split")
    assert (request.spec.weights, request.running.output) == ({"letters": 3.0}, Path("mine.safetensors"))


def test_a_suite_says_what_neither_does(recipe: Path) -> None:
    alone = requested([], {}, suite=SUITE)
    assert alone == requested([], {}, suite=load_suite(SUITE)) == requested([], {}, suite=str(TINY))
    assert isinstance(alone.inputs, dict)
    assert len(alone.inputs) == 8
    assert alone.opening.base == TINY / "base.safetensors"
    both = requested([], {}, suite=SUITE, recipe=recipe)
    assert (len(both.inputs), both.opening.base) == (2, TINY / "base.safetensors")


def test_an_option_of_the_recipe_is_refused_where_it_stands(recipe: Path) -> None:
    recipe.write_text("method: cart\noptions:\n  rank: 0\n")
    with pytest.raises(UsageError, match=r"recipe\.yaml:3:"):
        requested(["a.safetensors"], {}, recipe=recipe)


def test_every_keyword_has_one_group_but_what_renames() -> None:
    """Names are stripped and mapped where inputs are opened, and the recipe tells it."""
    shared = [name for name in KEYWORDS if sum(name in names for names in GROUPS.values()) > 1]
    assert sorted(shared) == ["map", "strip_prefix"]
    request = requested(["a"], {"strip_prefix": "visual.", "map": ("a* = b*",)})
    assert isinstance(request, Request)
    assert request.spec.strip_prefix == request.opening.strip_prefix == "visual."
    assert request.spec.map == request.opening.map == ("a* = b*",)
