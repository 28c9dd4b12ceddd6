"""Records in metadata with every wrong value in every place: refused by name, or one to live with."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from taskmerge.checkpoint.checkpoint import open_checkpoint
from taskmerge.checkpoint.provenance import provenance_of
from taskmerge.checkpoint.records import SHAPES, misfit
from taskmerge.errors import BadFile

DIGEST = "sha256:" + "0f" * 32
INPUT = {"name": "a", "digest": DIGEST, "tensors": 4}
MERGE = {
    "kind": "merge", "version": "0.1.0", "device": "cpu", "warnings": ["one"], "tensors": {"linear": 2},
    "treated": {"linear/method": 2}, "tasks": [INPUT, {"name": "b"}], "base": {**INPUT},
    "recipe": {"taskmerge": 1, "method": "ties", "options": {"density": 0.2}, "weights": {"a": 0.5, "b": 1}},
}  # fmt: skip
VECTOR = {
    "kind": "vector", "task": "a", "origin": "base", "origin_digest": DIGEST, "experts": {"a": DIGEST}, "device": "cpu",
    "tensors": ["x", "y"], "dtype": "F32", "dtypes": {"x": "BF16"}, "version": "0.1.0",
}  # fmt: skip
FEATURES = {
    "checkpoint": "merged", "task": "a", "digest": "sha256:1", "fingerprint": "sha256:2", "classes": ["x"],
    "task_kind": "classification",
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "merge": MERGE,
    "task": {**MERGE, "kind": "task", "task": "a", "block": DIGEST},
    "vector": VECTOR,
    "factors": {**VECTOR, "kind": "factors", "ranks": {"x": 2}, "rank": "2", "understood": "rank 2", "also": ["conv"]},
    "centre": {"kind": "centre", "experts": {"a": DIGEST}, "version": "0.1.0", "device": "cpu"},
    "coefficients": {"kind": "coefficients", "tasks": [{"name": "a"}]},
    "masks": {"kind": "masks", "tasks": [{"name": "a"}], "components": {"x": 3}},
    "features": {"kind": "features", "sets": [FEATURES]},
    "head": {"kind": "head", "task": "a", "activation": "gelu"},
}
WRONG = [
    None, True, 0, -1, 1.5, 2**63, 10**300, "", "x", "../../x", DIGEST.upper(), DIGEST + "0", "F33", [], ["x"], [[1]],
    {}, {"x": "x"}, {"x": 1}, {"x": None},
]  # fmt: skip


def places(value: object, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*above, key))


def replaced(record: dict[str, Any], place: tuple[Any, ...], value: object) -> Any:
    if not place:
        return value
    found: Any = copy.deepcopy(record)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


def at(record: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        record = record[key]
    return record


def test_every_kind_has_a_record_here() -> None:
    assert RECORDS.keys() == SHAPES.keys()


@pytest.mark.parametrize("kind", RECORDS)
def test_records_as_they_are_written_fit(kind: str) -> None:
    assert misfit(RECORDS[kind]) is None


@pytest.mark.parametrize("kind", RECORDS)
def test_a_value_of_another_type_is_named_wherever_it_stands(kind: str) -> None:
    """Free texts and maps of options may be any text and map; nothing else may be of another type."""
    for place in places(RECORDS[kind]):
        if place[:1] == ("recipe",) and place[1:2] not in ((), ("method",), ("weights",)):
            continue
        for wrong in WRONG:
            before = at(RECORDS[kind], place)
            numbers = isinstance(wrong, int | float) and isinstance(before, int | float) and not isinstance(wrong, bool)
            if type(wrong) is type(before) or numbers:
                continue
            found = misfit(replaced(RECORDS[kind], place, wrong))
            assert found is not None, (place, wrong)
            if place and place != ("kind",):
                assert str(place[0]) in found


@pytest.mark.parametrize(("place", "wrong"), [
    (("tasks", 0, "digest"), DIGEST.upper()), (("experts", "a"), DIGEST[:-1]), (("origin_digest",), "x"),
    (("dtype",), "F33"), (("dtypes", "x"), "float32"), (("origin",), "elsewhere"), (("ranks", "x"), -1),
    (("ranks", "x"), 10**30), (("components", "x"), True), (("tasks", 0, "tensors"), 1.0), (("task",), ""),
    (("base", "digest"), None), (("block",), ""),
])  # fmt: skip
def test_values_of_the_right_type_that_mean_nothing(place: tuple[Any, ...], wrong: object) -> None:
    holding = [record for record in RECORDS.values() if place[0] in record]
    assert holding
    for record in holding:
        assert misfit(replaced(record, place, wrong)) is not None, record["kind"]


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_missing_is_named(kind: str) -> None:
    for key in RECORDS[kind]:
        cut = {name: value for name, value in RECORDS[kind].items() if name != key}
        found = misfit(cut)
        assert found in (None, f"`{key}` is missing")
    assert misfit({"kind": kind}) is not None or kind == "head"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_anything_anywhere_is_a_record_or_none(kind: str, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(list(places(RECORDS[kind]))))
    found = misfit(replaced(RECORDS[kind], place, data.draw(JSON)))
    assert found is None or found.startswith("`")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"kind": "head", "kind": "merge"}', "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ('{"version": 1' + "0" * 400 + "}", "no JSON object"),
        ('{"version": NaN}', "no JSON object"),
        (json.dumps({**RECORDS["vector"], "dtype": ["F32"]}), "no record: `dtype` is malformed"),
    ],
)
def test_a_file_with_a_record_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "m.safetensors", {"taskmerge": text})
    with (
        open_checkpoint(tmp_path / "m.safetensors") as checkpoint,
        pytest.raises(BadFile, match=rf"m\.safetensors: its metadata `taskmerge` is {says}"),
    ):
        provenance_of(checkpoint)
