"""What an adaptation is asked to do: every wrong value is wrong usage, and what options replace of a method's parts."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from taskmerge.errors import UsageError
from taskmerge.methods.adaptive import (
    Adaptive,
    Block,
    Coefficients,
    Filter,
    Heads,
    Masks,
    Objective,
    Parts,
    Truncated,
    Updates,
    adaptive,
)  # fmt: skip
from taskmerge.methods.adaptive_registry import RECOMMENDED, adaptive_methods, find_adaptive
from taskmerge.methods.listing import plain_name
from taskmerge.methods.options import BadDeclaration
from taskmerge.numerics.rank import Rank
from taskmerge.specs.adapt import BLOCK_RATE, CHOICES, AdaptSpec, short_of_flips

NO_NUMBERS = (math.nan, math.inf, -math.inf, "x", "1", None)
WRONG: dict[str, tuple[Any, ...]] = {
    "method": ("adamergin", "", "task_arithmetic", "cart"),
    "with_": ("tnt", "", "average"),
    "layer": ("-1", "1.5", "lats", "", -1, 1.5),
    "iterations": (-1, 1.5, math.nan, "3", True),
    "batch_size": (0, -3, 1.5, "8", False),
    "every": (0, -1, 2.5, "2"),
    "watch": (0, -1, 2.5, "2"),
    "limit": (0, -1, 1.5, "10"),
    "lr": (0, -1e-3, *NO_NUMBERS[:5]),
    "head_lr": (0, -1e-3, *NO_NUMBERS[:5]),
    "mask_lr": (0, -1e-3, *NO_NUMBERS[:5]),
    "head_pull": (0, -1e-3, *NO_NUMBERS[:5]),
    "head_temperature": (0, -1.0, *NO_NUMBERS[:5]),
    "held_out": (0, 1, -0.1, 1.5, *NO_NUMBERS),
    "teacher_scale": NO_NUMBERS,
    "seed": (1.5, "x", None, math.nan),
    "rank": (0, -1, 1.5, "many", "energy:2", math.nan),
    **dict.fromkeys(CHOICES, ("x", "", 7)),
}
"""Of each field, values that mean nothing."""


def spec(**given: Any) -> AdaptSpec:
    return AdaptSpec(**given)


# --- wrong values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_every_wrong_value_is_wrong_usage_of_its_option(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as error:
        spec(**{name: value})
    assert error.value.exit_code == 2
    assert error.value.hint
    flag = f"--{name.rstrip('_').replace('_', '-')}"
    assert error.value.where == flag


@pytest.mark.parametrize(("given", "where"), [
    ({"method": "adamerging", "train": ("masks",)}, "--train"),
    ({"method": "adamerging", "train": ("both",)}, "--train"),
    ({"method": "surgery", "train": ("heads",)}, "--train"),
    ({"method": "symerge", "layer": "last", "train": ("heads",)}, "--train"),
    ({"method": "surgery", "origin": "mean"}, "--origin"),
    ({"method": "heads", "origin": "base"}, "--origin"),
    ({"method": "adamerging", "heads_start": "random"}, "--heads-start"),
    ({"method": "adamerging", "block_start": "expert"}, "--block-start"),
    ({"method": "adamerging", "project": True, "parity": True}, "--project"),
    ({"method": "surgery", "project": True}, "--project"),
    ({"method": "tint", "train": ("heads",), "project": True}, "--project"),
    ({"method": "adamerging_plus", "rank": 0.1}, "--rank"),
    ({"method": "surgery", "rank": 0.1}, "--rank"),
    ({"method": "adamerging", "with_": "supervised_heads"}, "--with"),
    ({"method": "heads", "with_": "adamerging"}, "--with"),
    ({"method": "heads", "with_": "adarank"}, "--with"),
    ({"method": "surgery", "with_": "tint"}, "--with"),
    ({"method": "adamerging_plus", "with_": "adarank"}, "--with"),
    ({"method": "concrete", "with_": "adarank"}, "--with"),
    ({"method": "heads", "with_": "surgery"}, "--with"),
    ({"method": "heads", "layer": "last"}, "--layer"),
    ({"method": "heads", "heads_start": "given"}, "--heads-start"),
    ({"method": "blocks", "layer": "head"}, "--layer"),
    ({"method": "adamerging", "layer": "head"}, "--layer"),
    ({"method": "surgery", "layer": "head"}, "--layer"),
    ({"method": "symerge", "with_": "blocks", "layer": "head"}, "--layer"),
    ({"method": "blocks", "parity": True}, "--parity"),
    ({"method": "cart_plus", "with_": "tint", "parity": True}, "--parity"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_wrong_usage(given: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as error:
        spec(**given).parts()
    assert error.value.exit_code == 2
    assert error.value.where == where
    assert error.value.hint


@pytest.mark.parametrize(("method", "options", "where"), [
    ("adamerging", {"layout": "block"}, "--layout"), ("adamerging", {"rank": 0.1}, "--rank"),
    ("adarank", {"temperature": 0}, "--temperature"), ("adarank", {"temperature": math.nan}, "--temperature"),
    ("adarank", {"origin": "init"}, "--origin"), ("adarank", {"rank": "many"}, "--rank"),
    ("adarank", {"rank": "0.1,0.2"}, "--rank"), ("cart_plus", {"coefficient": "x"}, "--coefficient"),
    ("surgery", {"size": 0}, "--size"), ("adamerging_plus", {"density": 0}, "--density"),
    ("adamerging_plus", {"density": 1.5}, "--density"),
])  # fmt: skip
def test_wrong_options_of_methods(method: str, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as error:
        spec(method=method, options=options)
    assert error.value.exit_code == 2
    assert error.value.where == where


def test_misspelt_names_say_the_nearest() -> None:
    for given, says in (
        ({"method": "adarnk"}, "`adarank`"), ({"with_": "surgry"}, "`surgery`"), ({"objective": "entrop"}, "`entropy`"),
        ({"layer": "frist"}, "`first`"), ({"method": "tint", "options": {"coeficient": 1}}, "`coefficient`"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            spec(**given)


def test_a_training_free_method_leads_to_merge() -> None:
    with pytest.raises(UsageError, match="taskmerge merge --method cart"):
        find_adaptive("CART")


# --- spellings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "name"), [
    ("AdaMerging++", "adamerging_plus"), ("adamerging-plus", "adamerging_plus"), ("CART++", "cart_plus"),
    (" Tint++ ", "tint_plus"), ("SyMerge", "symerge"), ("supervised-heads", "supervised_heads"),
])  # fmt: skip
def test_names_have_one_spelling(said: str, name: str) -> None:
    assert plain_name(said) == name
    assert spec(method=said) == spec(method=name)
    assert spec(method="adamerging", with_=said).with_ == name


def test_lists_texts_and_numbers_of_layers_are_taken_as_they_are_meant() -> None:
    assert spec(method="adarank", train=["masks"]).train == ("masks",)
    assert spec(method="adarank", train="masks").train == ("masks",)
    assert spec(tasks="cars").tasks == ("cars",)
    assert spec(layer=3).layer == "3"
    assert spec(rank=0.1) == spec(rank="0.1") == spec(rank=Rank("ratio", 0.1))
    assert spec(method="adarank", options={"rank": "0.16"}) == spec(method="adarank", options={"rank": 0.16})


def test_every_method_is_found_by_its_own_name_and_its_aliases() -> None:
    for name, method in adaptive_methods().items():
        assert find_adaptive(name) is method
        assert all(find_adaptive(alias) is method for alias in method.aliases)
    assert RECOMMENDED in adaptive_methods()
    assert list(adaptive_methods()) == sorted(adaptive_methods())


# --- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(adaptive_methods()))
def test_what_is_not_said_is_the_methods_own(method: str) -> None:
    assert spec(method=method).parts() == adaptive_methods()[method].bound(dict(spec(method=method).options))


@pytest.mark.parametrize("method", list(adaptive_methods()))
def test_options_replace_parts(method: str) -> None:
    for objective in get_args(Objective):
        assert spec(method=method, objective=objective).parts().objective == objective
    for filter_ in get_args(Filter):
        assert spec(method=method, filter=filter_).parts().filter == filter_
    for updates in get_args(Updates):
        assert spec(method=method, updates=updates).parts().updates == updates
    found = spec(method=method, iterations=7, batch_size=3, on="features").parts()
    assert (found.iterations, found.batch_size, found.on) == (7, 3, "features")
    assert spec(method=method, refit_heads=True).parts().refit
    assert spec(method=method, iterations=0).parts().iterations == 0


def test_an_origin_that_is_a_methods_option_decides_its_other_defaults_too() -> None:
    """AdaRank about the mean starts from CART's rank."""
    said, option = spec(method="adarank", origin="mean"), spec(method="adarank", options={"origin": "mean"})
    assert said.parts() == option.parts()
    masks = said.parts().of(Masks)
    assert isinstance(masks, Masks)
    assert masks.kept == Rank("ratio", 0.08)


def test_a_rank_truncates_what_a_method_takes_whole() -> None:
    assert spec(method="adamerging", rank=0.1).parts().components == Truncated(Rank("ratio", 0.1))
    assert spec(method="symerge", origin="mean", rank=8).parts().components == Truncated(Rank("count", 8))


def test_a_layer_is_a_block_in_place_of_the_head_and_slow() -> None:
    parts = spec(method="symerge", layer="2").parts()
    assert parts.learns.keys() == {"coefficients", "block"}
    assert parts.of(Block) == Block(layer="2")
    assert spec(method="symerge", layer="head").parts() == spec(method="symerge").parts()
    assert spec(method="symerge", layer="2").rates(parts, 10) == {"coefficients": BLOCK_RATE, "block": BLOCK_RATE}
    assert spec(method="blocks", layer="0", block_start="merged").parts().of(Block) == Block(layer="0", start="merged")


def test_with_adds_what_another_method_learns_by_that_methods_objective() -> None:
    parts = spec(method="adarank", with_="tint++").parts()
    tint = adaptive_methods()["tint_plus"].bound({})
    assert parts.learns.keys() == {"coefficients", "masks", "heads"}
    assert (parts.objective, parts.filter, parts.updates) == (tint.objective, tint.filter, tint.updates)
    assert parts.components == adaptive_methods()["adarank"].bound({}).components
    heads = parts.of(Heads)
    assert isinstance(heads, Heads)
    assert spec(method="adarank", with_="tint", heads_start="random").parts().of(Heads) == Heads(start="random")
    assert spec(method="adarank", with_="tint", objective="entropy").parts().objective == "entropy"


def test_parity_is_what_the_public_codes_do() -> None:
    parts = spec(method="adamerging", parity=True).parts()
    coefficients = parts.of(Coefficients)
    assert isinstance(coefficients, Coefficients)
    assert coefficients.clamped
    assert (parts.iterations, parts.batch_size) == (500, 32)
    adarank = spec(method="adarank", parity=True)
    assert adarank.parts().iterations == 10_000
    assert adarank.rates(adarank.parts(), 10_000) == {"coefficients": 1e-3, "masks": 1e-3}
    assert spec(method="adarank", parity=True, iterations=5).parts().iterations == 5
    for name, declared in adaptive_methods().items():
        if declared.parity:
            spec(method=name, parity=True).parts()


def test_parity_stays_with_another_layer() -> None:
    """The published rate of heads is that of the layer in their place."""
    parts = spec(method="symerge", parity=True, layer="2").parts()
    assert (parts.rates["coefficients"], parts.rates["block"]) == (1e-2, 1e-2)
    assert (parts.iterations, parts.batch_size) == (500, 32)
    assert spec(method="surgery", parity=True, layer="2").parts().rates["block"] == BLOCK_RATE


def test_masks_are_added_with_the_components_that_they_are_of() -> None:
    parts = spec(method="adamerging", with_="adarank").parts()
    assert parts.components == Truncated(Rank("ratio", 1.0))
    assert parts.learns.keys() == {"coefficients", "masks"}
    ranked = spec(method="adamerging", with_="adarank", rank=0.5).parts()
    assert ranked.components == Truncated(Rank("ratio", 0.5))
    assert ranked.of(Masks) is not None
    assert spec(method="cart_plus", with_="adarank").parts().components == Truncated(Rank("ratio", 0.08))


def test_what_is_refused_is_no_matter_of_the_hint() -> None:
    """What hints say instead is taken."""
    spec(method="adarank", with_="heads").parts()
    spec(method="blocks", layer="last").parts()
    spec(method="heads", layer="last", iterations=3).parts()
    spec(method="adamerging", with_="tint", layer="head").parts()
    assert spec(method="heads", layer="last", iterations=0).parts().iterations == 0


# --- rates -----------------------------------------------------------------------------------------------------


def rates(updates: int = 100, **given: Any) -> dict[str, float]:
    asked = spec(**given)
    return asked.rates(asked.parts(), updates)


def test_rates_by_learnable() -> None:
    assert rates(method="adamerging") == {"coefficients": 1e-3}
    assert rates(method="tint") == {"coefficients": 1e-2, "heads": 1e-2}
    assert rates(method="tint", lr=0.5) == {"coefficients": 0.5, "heads": 1e-2}
    assert rates(method="tint", head_lr=0.5) == {"coefficients": 1e-2, "heads": 0.5}
    assert rates(method="adarank", lr=0.5) == {"coefficients": 0.5, "masks": 1e-2}
    assert rates(method="adarank", mask_lr=0.5) == {"coefficients": 1e-3, "masks": 0.5}
    assert rates(method="surgery", lr=0.5) == {"adapter": 0.5}
    assert rates(method="tint", train=("heads",)) == {"heads": 1e-2}


@pytest.mark.parametrize(("updates", "rate"), [(0, 1.0), (1, 1.0), (20, 0.05), (1000, 1e-3), (10_000, 1e-3)])
def test_masks_move_as_fast_as_the_horizon_needs(updates: int, rate: float) -> None:
    assert rates(updates, method="adarank")["masks"] == rate


def test_a_horizon_in_which_no_bit_can_flip_is_said() -> None:
    asked = spec(method="adarank", mask_lr=1e-3)
    told = short_of_flips(asked, asked.parts(), 99)
    assert told is not None
    assert "--mask-lr" in told
    assert short_of_flips(asked, asked.parts(), 100) is None
    assert short_of_flips(spec(method="adarank"), spec(method="adarank").parts(), 5) is None
    fixed = spec(method="adarank", mask_lr=1e-3, train=("coefficients",))
    assert short_of_flips(fixed, fixed.parts(), 1) is None
    assert short_of_flips(spec(method="tint"), spec(method="tint").parts(), 1) is None


# --- recipes ---------------------------------------------------------------------------------------------------


def test_a_recipe_is_plain_and_says_what_differs() -> None:
    plain = spec(method="adarank").recipe()
    assert plain == {"method": "adarank", "options": {
        "coefficient": None, "origin": "base", "rank": None, "temperature": 10.0,
    }}  # fmt: skip
    said = spec(method="tint", with_="adarank", lr=0.1, tasks=("a", "b"), train=("heads",), rank=0.1, seed=3).recipe()
    assert said["with"] == "adarank"
    assert said["tasks"] == ["a", "b"]
    assert json.loads(json.dumps(said)) == said


def test_equal_specs_have_equal_recipes_and_others_other_ones() -> None:
    assert (
        spec(method="AdaRank", options={"rank": "0.5"}).recipe()
        == spec(method="adarank", options={"rank": 0.5}).recipe()
    )
    others = [spec(), spec(lr=0.1), spec(seed=1), spec(method="adarank"), spec(method="adarank", options={"rank": 0.5})]
    assert len({json.dumps(one.recipe(), sort_keys=True) for one in others}) == len(others)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(AttributeError):
        spec().seed = 3  # type: ignore[misc]  # that is what is tested


# --- declarations ------------------------------------------------------------------------------------------------


def test_a_declaration_describes_and_returns_the_function() -> None:
    def mine() -> Parts:
        """The first line.

        More.
        """
        return Parts(learns={"coefficients": Coefficients()})

    described = adaptive(title="Mine", formula="θ", paper="arXiv:1", aliases=("my",), parity={"clamped": True})(mine)
    declared = described.declaration  # type: ignore[attr-defined]  # the decorator puts it there
    assert described is mine
    assert isinstance(declared, Adaptive)
    assert (declared.name, declared.summary, declared.aliases) == ("mine", "The first line.", ("my",))
    assert declared.bound({}) == mine()


def test_a_parameter_that_is_no_option_is_a_bad_declaration() -> None:
    def mine(rank: int) -> Parts:
        """A method."""
        return Parts(learns={})

    with pytest.raises(BadDeclaration):
        adaptive(title="Mine", formula="θ", paper="arXiv:1")(mine)


def test_every_method_says_what_it_is(tmp_path: Path) -> None:
    for method in adaptive_methods().values():
        assert method.title
        assert method.summary.endswith(".")
        assert method.paper.startswith(("arXiv:", "doi:"))
        assert method.formula
        parts = method.bound(dict(spec(method=method.name).options))
        assert parts.learns
        assert parts.per_task or parts.shapes_weights
        for name in method.parity:
            assert name == "clamped" or name in parts.rates or hasattr(parts, name)
