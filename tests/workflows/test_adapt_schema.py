"""The published schema of an adaptation's report: closed, and of the same shape as the values it describes."""

from dataclasses import fields
from typing import Any, get_args

import jsonschema

from taskmerge.methods.adaptive import Components, Learnable
from taskmerge.specs.adapt import CHOICES, AdaptSpec
from taskmerge.workflows.adapt_schema import KIND, SCHEMA_VERSION, schema


def closed(part: Any) -> None:
    """Every object with known keys allows no others."""
    if isinstance(part, dict):
        if "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part["required"]) <= set(part["properties"])
        for value in part.values():
            closed(value)
    elif isinstance(part, list):
        for value in part:
            closed(value)


def test_the_schema_leaves_nothing_open() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    closed(schema())
    assert schema()["properties"]["report"]["const"] == KIND
    assert schema()["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_a_recipe_may_have_every_field_of_the_spec() -> None:
    own = schema()["$defs"]["recipe"]["properties"]
    assert set(own) == {field.name.rstrip("_") for field in fields(AdaptSpec)}
    for name, choices in CHOICES.items():
        assert tuple(own[name]["enum"]) == choices, name


def test_every_learnable_and_every_component_has_its_shape() -> None:
    for kind in get_args(Learnable):
        own = schema()["$defs"][kind.__name__.lower()]["properties"]
        assert set(own) == {"kind", *(field.name for field in fields(kind))}, kind.__name__
    shapes = schema()["$defs"]["parts"]["properties"]["components"]["anyOf"]
    found = {shape["properties"]["kind"]["const"]: set(shape["properties"]) for shape in shapes}
    assert found == {
        kind.__name__.lower(): {"kind", *(field.name for field in fields(kind))} for kind in get_args(Components)
    }
