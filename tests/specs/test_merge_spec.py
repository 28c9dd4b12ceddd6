"""A spec is checked where it is made, and its recipe says all that shapes the result."""

from typing import Any

import pytest
import yaml

from taskmerge.errors import UsageError
from taskmerge.numerics.rank import Rank
from taskmerge.specs.load import parse_recipe
from taskmerge.specs.merge import MergeSpec


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"method": "tie"}, "unknown method `tie`"),
        ({"method": "dare", "then": "tie"}, "unknown method `tie`"),
        ({"qkv": "both"}, "--qkv: `both` is no value"),
        ({"compute_dtype": "F32"}, "--compute-dtype: `F32` is no value"),
        ({"dtype": "int4"}, "--dtype: unknown type `int4`"),
        ({"also": ["vector"]}, "--also: unknown class of tensors `vector`"),
        ({"weights": {"a": float("nan")}}, "--weight: the weight of `a` is nan"),
    ],
)
def test_values_that_mean_nothing_are_refused_at_once(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        MergeSpec(**keywords)
    assert says in str(caught.value)
    assert caught.value.hint


def test_spellings_come_to_one() -> None:
    one = MergeSpec(method="Task-Arithmetic", dtype="half", include="a.*", also=["conv"])
    assert one == MergeSpec(method="task_arithmetic", dtype="F16", include=("a.*",), also=("conv",))


def test_the_chain_ends_with_what_merges() -> None:
    assert [one.name for one in MergeSpec(method="cart").chain()] == ["cart"]
    assert [one.name for one in MergeSpec(method="dare").chain()] == ["dare", "task_arithmetic"]
    assert [one.name for one in MergeSpec(method="breadcrumbs", then="ties").chain()] == ["breadcrumbs", "ties"]
    for method, then in (("cart", "ties"), ("dare", "cart"), ("dare", "average"), ("dare", "breadcrumbs")):
        with pytest.raises(UsageError, match="--then"):
            MergeSpec(method=method, then=then).chain()


def test_points_are_the_product_of_the_options() -> None:
    spec = MergeSpec(options={"rank": (Rank("count", 1), Rank("count", 2)), "coefficient": (0.5, 1.0, 2.0)})
    assert len(list(spec.points())) == 6
    assert next(spec.points()) == {"coefficient": 0.5, "rank": Rank("count", 1)}
    assert list(MergeSpec().points()) == [{}]


SPECS = [
    MergeSpec(),
    MergeSpec(method="dare", then="ties", seed=7, weights={"b": 2.0, "a": 0.5}),
    MergeSpec(method="ties", lines=True, include=("visual.*",), exclude=("*.bias", "norm.*"), dtype="bf16"),
    MergeSpec(method="tsv_m", also=("projection", "embedding"), qkv="fused", compute_dtype="float64", svd="randomized"),
    MergeSpec(on_missing="base", on_buffer="first", heads="keep", strip_prefix="module."),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_recipe_read_again_gives_the_same_spec(spec: MergeSpec) -> None:
    """Through YAML, as in a model card, and as it is, as in a file's metadata."""
    recipe = spec.recipe({})
    for values in (recipe, yaml.safe_load(yaml.safe_dump(recipe))):
        found = parse_recipe(values, "here")
        assert MergeSpec(**found.shape, weights=found.weights) == spec
        assert found.options == recipe["options"]


def test_a_recipe_says_what_differs_from_the_defaults_and_every_option_of_the_method() -> None:
    assert MergeSpec().recipe({}) == {"taskmerge": 1, "method": "cart", "options": {"coefficient": 1.0, "rank": 0.08}}
    point = {"rank": Rank("energy", 0.9), "coefficient": 2.0}
    assert MergeSpec(seed=3).recipe(point)["options"] == {"coefficient": 2.0, "rank": "energy:0.9"}
    assert MergeSpec().recipe({"rank": Rank("count", 1)})["options"]["rank"] == 1
    assert repr(MergeSpec().recipe({"rank": Rank("ratio", 1.0)})["options"]["rank"]) == "1.0"
